"""Chat templates as programs: what they may not reach, and what they may not take."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import tiny
from support import tiny_models as models
from support.hostile_case import Case, bounded, check
from support.tiers import spread

import upge
from upge.model import ModelError
from upge.model.template_process import Renderer, RenderingError, renderer

TURNS = [{"role": "user", "content": "hi"}]
SLOW = "it takes more than 2 s of processor time"
LARGE = "it needs too much memory|characters, and 4000000 are taken|" + SLOW

TAKING = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": SLOW,
    "{{ 10 ** (10 ** 10) }}": SLOW,
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}": SLOW,
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
    "{{ 'a' * (6 * 10 ** 9) }}": "it needs too much memory",
    "{{ [0] * 10 ** 10 }}": "it needs too much memory",
    "{{ 'a' * 10 ** 9 }}": LARGE,
    "{{ 'a' | center(10 ** 9) }}": LARGE,
    "{{ '%1000000000d' % 1 }}": LARGE,
    "{% set n = namespace(x='abcd') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}": LARGE,
    "{{ 'a' * 4000001 }}": "it writes 4000001 characters, and 4000000 are taken",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "recursion",
}
LONG = "{{ 'a' * 4000001 }}"
"""The one of these that is refused at once."""
REACHING = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
    "{{ cycler.__init__.__globals__.os.mkdir('CANARY') }}": "unsafe",
    "{{ self.__init__.__globals__ }}": "unsafe",
    "{{ '{0.__class__.__mro__}'.format('') }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{{ messages[0].update({'role': 'x'}) }}": "unsafe",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{% for %}": "Expected an expression",
    "{{ nothing.there }}": "undefined",
}


@pytest.mark.parametrize("template", spread([*TAKING, *REACHING], lambda template: (TAKING | REACHING)[template]))
def test_a_template_that_takes_too_much_or_reaches_too_far_is_refused(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with bounded(), pytest.raises(RenderingError, match=(TAKING | REACHING)[template]):
        renderer().render(template, TURNS, {}, generation=True)
    assert not (tmp_path / "CANARY").exists()
    assert renderer().render("{{ messages[0].content }}", TURNS, {}, generation=True) == "hi", "and the next one works"


@pytest.mark.parametrize("function", ["raise_exception", "strftime_now", "range"])
def test_what_lies_behind_a_function_is_nothing(function: str) -> None:
    assert renderer().render(f"{{{{ {function}.__globals__ }}}}", TURNS, {}, generation=True) == ""


def test_a_template_is_rendered_as_transformers_does() -> None:
    tokenizer = models.tokenizer(models.CHAT, bos=True)
    turns = [{"role": "system", "content": "<b>é\u2028"}, *TURNS, {"role": "assistant", "content": "'\"&"}]
    for generation in (True, False):
        theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        ours = renderer().render(
            tokenizer.get_chat_template(), turns, tokenizer.special_tokens_map, generation=generation
        )
        assert ours == theirs


def test_a_process_that_can_t_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upge.processes.sys.executable", "/bin/false")
    with pytest.raises(RenderingError, match=r"can't be started \(1\)"):
        Renderer().render("x", TURNS, {}, generation=True)


def test_a_process_ends_with_whoever_asked() -> None:
    one = Renderer()
    one.render("x", TURNS, {}, generation=True)
    process = one._process
    assert process is not None
    assert process.end() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


def test_a_module_in_the_working_folder_is_not_taken_for_jinja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2", "json", "transformers"):
        (tmp_path / f"{name}.py").write_text("import os\nos.mkdir('CANARY')\n")
    monkeypatch.chdir(tmp_path)
    assert Renderer().render("x", TURNS, {}, generation=True) == "x"
    assert not (tmp_path / "CANARY").exists()


def test_the_policy_says_which_turns_it_was_at() -> None:
    policy = models.policy(None, LONG)
    problem = upge.Problem(id="p", prompt="1+1", answer="2")
    with bounded(), pytest.raises(ModelError, match=f"can't take turns by user: {TAKING[LONG]}"):
        policy.templater().prompt(problem)


def test_a_run_on_a_tokenizer_with_such_a_template_ends(tmp_path: Path) -> None:
    good = tiny.recipe(tmp_path, train={"steps": 1})
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(LONG)
    assert json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    check(Case(["run", str(good)], f"chat template can't take turns by user: {TAKING[LONG]}"))
