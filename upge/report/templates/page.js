"use strict";
(() => {
  const tip = document.querySelector(".tip");
  const made = (name, text = "", kind = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const said = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))).replace("-", "−"));

  const show = (event, ...parts) => {
    tip.replaceChildren(...parts);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const right = event.clientX + 14;
    const left = right + width > innerWidth - 8 ? event.clientX - width - 14 : right;
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = Math.max(8, Math.min(event.clientY + 14, innerHeight - height - 8)) + "px";
  };
  const hide = () => (tip.hidden = true);

  // What stands at a place says so itself.
  for (const drawing of document.querySelectorAll(".drawing svg")) {
    drawing.addEventListener("pointermove", (event) => {
      const text = event.target.dataset.tip;
      if (text) show(event, made("span", text));
      else hide();
    });
    drawing.addEventListener("pointerleave", hide);
  }

  // Curves: the points nearest to the pointer, of every series that is shown.
  for (const figure of document.querySelectorAll(".chart")) {
    const svg = figure.querySelector("svg");
    const rule = figure.querySelector(".rule");
    const groups = figure.querySelectorAll(".series");
    const data = JSON.parse(figure.querySelector("script").textContent);
    for (const button of figure.querySelectorAll("[data-series]")) {
      button.addEventListener("click", () => {
        const group = groups[button.dataset.series];
        const shown = !group.toggleAttribute("hidden");
        button.setAttribute("aria-pressed", shown);
      });
    }
    const away = () => {
      hide();
      rule.setAttribute("visibility", "hidden");
    };
    svg.addEventListener("pointerleave", away);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const shown = data.series.filter((_, index) => !groups[index].hasAttribute("hidden"));
      const near = (points) => points.reduce((a, b) => (Math.abs(b[1] - at) < Math.abs(a[1] - at) ? b : a));
      if (!shown.length) return away();
      const [x, place] = near(shown.map((series) => near(series.points)));
      rule.setAttribute("transform", `translate(${place} 0)`);
      rule.setAttribute("visibility", "visible");
      const lines = shown.flatMap((series) => {
        const point = series.points.find((each) => each[0] === x);
        if (!point) return [];
        const line = made("div");
        const interval = point[3] === null ? "" : ` [${said(point[3])}, ${said(point[4])}]`;
        line.append(made("i", "", "c" + series.colour), made("span", series.label), made("b", said(point[2]) + interval));
        return [line];
      });
      show(event, made("div", `${data.across} ${said(x)}`), ...lines);
    });
  }

  // Responses coloured by the weights of their tokens, a step at a time.
  const credits = document.getElementById("credits");
  if (credits) {
    const lines = JSON.parse(credits.textContent);
    const choice = document.getElementById("weighed");
    for (const step of new Set(lines.map((line) => line.step))) choice.append(made("option", step));
    const largest = (shown, term) =>
      Math.max(1e-300, ...shown.flatMap((line) => line.terms[term]?.weights ?? []).map(Math.abs));
    const coloured = (line, term, most) => {
      const text = made("p", "", "tokens");
      line.pieces.forEach((piece, index) => {
        const weight = line.terms[term]?.weights[index] ?? 0;
        const token = made("span", piece);
        const share = Math.round(50 * Math.sqrt(Math.abs(weight) / most));
        if (share) token.style.background = `color-mix(in srgb, var(${weight > 0 ? "--c0" : "--c1"}) ${share}%, transparent)`;
        token.dataset.tip = `${piece} · weight ${said(weight)}`;
        text.append(token);
      });
      if (line.cut) text.append(made("small", " … cut"));
      return text;
    };
    const card = (line, shown) => {
      const card = made("div", "", "card");
      const kind = line.sample < 0 ? "demonstration" : `sample ${line.sample}`;
      const head = made("p", `${line.problem} · ${kind} · reward ${said(line.reward)}`, "hint");
      card.append(head);
      for (const [term, { coefficient, advantage, weights }] of Object.entries(line.terms)) {
        const mean = advantage === null ? "" : ` · mean Â ${said(advantage)}`;
        const note = weights.some((weight) => weight) ? "" : " · all weights 0";
        card.append(made("p", `${term} · s ${said(coefficient)}${mean}${note}`, "term-of"));
        card.append(coloured(line, term, largest(shown, term)));
      }
      if (!Object.keys(line.terms).length) card.append(made("p", "weighed by no term", "term-of"), coloured(line, "", 1));
      return card;
    };
    const weigh = () => {
      const shown = lines.filter((line) => String(line.step) === choice.value);
      const cards = [];
      shown.forEach((line, index) => {
        if (!index || shown[index - 1].group !== line.group) cards.push(made("p", line.prompt, "prompt"));
        cards.push(card(line, shown));
      });
      document.getElementById("trajectories").replaceChildren(...cards);
    };
    choice.addEventListener("input", weigh);
    document.getElementById("trajectories").addEventListener("pointerover", (event) => {
      if (event.target.dataset.tip) show(event, made("span", event.target.dataset.tip));
      else hide();
    });
    document.getElementById("trajectories").addEventListener("pointerleave", hide);
    weigh();
  }

  // The table of responses.
  const table = document.getElementById("responses");
  if (!table) return;
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const form = document.getElementById("filters");
  const body = table.tBodies[0];
  const [before, after] = ["before", "after"].map((id) => document.getElementById(id));
  const SIZE = 20;
  let page = 0;
  let sorting = { key: null, down: false };
  let found = rows;
  for (const stream of new Set(rows.map((row) => row.stream))) {
    const option = made("option", stream);
    option.value = stream;
    form.elements.stream.append(option);
  }
  const best = rows.reduce((most, row) => Math.max(most, row.reward), 0);

  const drawn = (row) => {
    const line = made("tr");
    const reward = made("td", "", "n reward-of");
    reward.append(made("span", said(row.reward), "reward " + (row.reward <= 0 ? "c1" : row.reward < best ? "c4" : "c2")));
    const text = made("td", "", "text");
    text.append(made("div", row.text || "(empty)"));
    text.addEventListener("click", () => {
      if (!getSelection().toString()) line.classList.toggle("open");
    });
    const problem = made("td", row.problem, "problem");
    problem.title = row.problem;
    line.append(made("td", row.step, "n step"), made("td", row.stream, "stream"), problem, made("td", row.sample, "n sample"), reward);
    line.append(made("td", row.term, "term"));
    line.append(made("td", row.length + (row.truncated ? " (cut)" : ""), "n length"), text);
    return line;
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / SIZE));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...found.slice(page * SIZE, (page + 1) * SIZE).map(drawn));
    const last = Math.min(found.length, (page + 1) * SIZE);
    document.getElementById("place").textContent = found.length ? `${page * SIZE + 1}–${last} of ${found.length}` : "none";
    before.disabled = page === 0;
    after.disabled = page === pages - 1;
  };
  const choose = () => {
    const { text, stream, from, to, low, high } = Object.fromEntries(new FormData(form));
    const wanted = text.toLowerCase();
    const within = (value, least, most) => (least === "" || value >= Number(least)) && (most === "" || value <= Number(most));
    found = rows.filter(
      (row) =>
        (!stream || row.stream === stream) &&
        within(row.step, from, to) &&
        within(row.reward, low, high) &&
        (!wanted || row.text.toLowerCase().includes(wanted) || row.problem.toLowerCase().includes(wanted)),
    );
    const { key, down } = sorting;
    if (key) {
      const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
      found.sort((a, b) => (down ? -1 : 1) * order(a[key], b[key]));
    }
    page = 0;
    draw();
  };
  form.addEventListener("input", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      sorting = { key: button.dataset.key, down: sorting.key === button.dataset.key && !sorting.down };
      for (const head of table.querySelectorAll("th")) head.removeAttribute("aria-sort");
      button.parentElement.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      choose();
    });
  }
  before.addEventListener("click", () => (page--, draw()));
  after.addEventListener("click", () => (page++, draw()));
  draw();
})();
