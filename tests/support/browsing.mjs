// Opens pages in Chromium as people would, and says what it saw as one JSON document.
// node browsing.mjs < {"pages": {name: file}, "screenshots": folder or null}, beside the packages that it imports.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const { pages, screenshots } = JSON.parse(readFileSync(0, "utf8"));
const VIEWS = [390, 1440].flatMap((width) => ["light", "dark"].map((scheme) => ({ width, scheme })));

const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  args: chromium.args,
  headless: "shell",
});

async function opened(file, { width, scheme }, faults) {
  const page = await browser.newPage();
  page.on("console", (message) => faults.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) faults.push(`request: ${request.url()}`);
  });
  page.on("requestfailed", (request) => faults.push(`failed: ${request.url()}`));
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
  return page;
}

// How it looks: whether the body overflows, its colours, and charts that nobody could see.
const looks = (page) =>
  page.evaluate(() => ({
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll("main > *, section > *")]
      .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
      .map((each) => each.outerHTML.slice(0, 80)),
    background: getComputedStyle(document.body).backgroundColor,
    flat: [...document.querySelectorAll("svg")].filter((each) => each.getBoundingClientRect().height < 100).length,
    outside: [...document.querySelectorAll("svg text")].filter((each) => {
      const [own, all] = [each.getBoundingClientRect(), each.closest("svg").getBoundingClientRect()];
      return own.width && (own.left < all.left - 1 || own.right > all.right + 1);
    }).length,
  }));

// The middle of the window, where the sticky header covers nothing.
async function middle(page, selector) {
  const element = await page.$(selector);
  await element.evaluate((each) => each.scrollIntoView({ block: "center" }));
  return element;
}
const press = async (page, selector) => (await middle(page, selector)).click();

// The table's texts in a column, and what the pager says.
const column = (page, kind) =>
  page.$$eval(`#responses td.${kind}`, (cells) => cells.map((cell) => cell.textContent));
const place = (page) => page.$eval("#place", (each) => each.textContent);
const fill = (page, name, value) =>
  page.$eval(
    `[name=${name}]`,
    (field, text) => {
      field.value = text;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    },
    value,
  );

async function table(page) {
  const seen = { all: await place(page), before: await page.$eval("#before", (each) => each.disabled) };
  await press(page, "#after");
  seen.second = await place(page);
  await press(page, "[data-key=reward]");
  seen.ascending = [await place(page), await column(page, "reward-of")];
  await press(page, "[data-key=reward]");
  seen.descending = await column(page, "reward-of");
  await fill(page, "low", "1");
  seen.right = await place(page);
  await fill(page, "low", "");
  await fill(page, "from", "1");
  await fill(page, "to", "1");
  await fill(page, "stream", "train");
  seen.step = [await place(page), await column(page, "step"), await column(page, "stream")];
  for (const name of ["from", "to", "stream"]) await fill(page, name, "");
  await fill(page, "text", "P7");
  seen.problem = await column(page, "problem");
  await fill(page, "text", "no such thing");
  seen.nothing = await place(page);
  await fill(page, "text", "");
  seen.again = await place(page);
  await press(page, "#responses td.text");
  seen.open = await page.$$eval("#responses tr.open", (rows) => rows.length);
  return seen;
}

async function hovered(page, selector) {
  await (await middle(page, selector)).hover();
  const text = await page.$eval(".tip", (tip) => (tip.hidden ? "" : tip.textContent));
  await page.mouse.move(1, 1);
  return [text, await page.$eval(".tip", (tip) => tip.hidden)];
}

// The steps that can be chosen, and of the last one the responses that have colours.
async function weights(page) {
  const steps = await page.$$eval("#weighed option", (options) => options.map((each) => each.value));
  await page.select("#weighed", steps.at(-1));
  const tip = await hovered(page, ".tokens span");
  const coloured = await page.$$eval(".tokens", (texts) => texts.map((each) => Boolean(each.querySelector("[style]"))));
  const said = await page.$$eval(".tokens", (texts) => texts.map((each) => each.previousElementSibling.textContent));
  return { steps, tip, coloured, said };
}

async function legend(page) {
  const button = await middle(page, ".legend [data-series='0']");
  const hidden = () => page.$$eval(".series[hidden]", (series) => series.length);
  await button.click();
  const first = await hidden();
  await button.click();
  return [first, await hidden()];
}

const said = [];
for (const [name, file] of Object.entries(pages)) {
  for (const view of VIEWS) {
    const faults = [];
    const page = await opened(file, view, faults);
    const found = { name, ...view, ...(await looks(page)), faults };
    if (screenshots) {
      await page.screenshot({ path: join(screenshots, `${name}-${view.width}-${view.scheme}.png`), fullPage: true });
    }
    found.curve = await hovered(page, ".chart svg");
    if (await page.$(".spot")) found.spot = await hovered(page, ".spot");
    if (await page.$(".tokens span")) found.weights = await weights(page);
    if (await page.$("#responses")) found.table = await table(page);
    if (await page.$(".legend [data-series]")) found.legend = await legend(page);
    said.push(found);
    await page.close();
  }
}
await browser.close();
process.stdout.write(JSON.stringify(said));
