// An answer: one run, or several side by side under different rules, as text and as tokens.
import { Markdown } from "./markdown.js";
import { RunView, Scale, fixed, make } from "./trace.js";

/** A run that has not begun. */
export const newRun = (spec) => ({
  spec, rule: { support: "full" }, text: "", thoughts: "", ids: [], steps: [], stop_reason: null,
  mean_entropy: 0, mean_gate: 0, parts_at: null, agreement: null,
});

/** Takes what an event of a stream says of a run; whether it has a new step. */
export function take(run, choice) {
  const { delta = {}, moi } = choice;
  const text = delta.content ?? "";
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  run.text += text;
  run.thoughts += thought;
  run.ids.push(...(choice.token_ids ?? []));
  if (choice.finish_reason) {
    run.stop_reason = moi?.ended_by ?? choice.finish_reason;
    Object.assign(run, { seed: moi?.seed, spec: moi?.rule ?? run.spec });
    Object.assign(run, { mean_entropy: moi?.mean_entropy ?? 0, mean_gate: moi?.mean_gate ?? 0 });
    run.rule.support = Number(moi?.support) || "full";
    return false;
  }
  if (moi?.token === undefined) return false;
  run.steps.push({
    token: moi.token, piece: moi.text, text: thought + text, logprob: moi.logprob, entropy: moi.entropy, gate: moi.gate,
    top: moi.top.map(([token, text, weight]) => ({ token, text, weight })),
    likeliest: (moi.likeliest ?? []).map(([token, text, logprob]) => ({ token, text, logprob })),
  });
  return true;
}

/** Sets where runs part from the first one. */
export function compare(runs) {
  const [first, ...others] = runs;
  for (const run of others) {
    const longest = Math.max(first.ids.length, run.ids.length);
    const at = Array.from({ length: longest }).findIndex((_, s) => first.ids[s] !== run.ids[s]);
    run.parts_at = at < 0 ? null : at;
    const same = run.ids.filter((id, s) => id === first.ids[s]).length;
    run.agreement = longest ? same / longest : 1;
  }
}

/** An answer on the page. */
export class AnswerView {
  /** `on.choose(view, step)` when a token is looked at, `on.pick(index)` when the run is chosen with which the chat goes on. */
  constructor(node, on) {
    Object.assign(this, { answer: node, on });
    this.scale = new Scale(node.runs.flatMap((run) => run.steps));
    this.node = make("div", { class: node.runs.length > 1 ? "runs columns" : "runs" });
    this.columns = node.runs.map((run, at) => this.column(run, at));
    this.node.append(...this.columns.map((column) => column.node));
  }

  column(run, at) {
    const markdown = new Markdown();
    const thoughts = make("pre", {});
    const folded = make("details", { class: "thoughts", hidden: true }, make("summary", {}, "Thoughts"), thoughts);
    const figures = make("div", { class: "figures" });
    const tokens = make("div", { class: "tokens" });
    const several = this.answer.runs.length > 1;
    const head = several ? [make("label", { class: "pick" }, make("input", {
      type: "radio", name: "pick-" + this.answer.id, checked: (this.answer.pick ?? 0) === at, onchange: () => this.on.pick(at),
    }), make("span", {}, run.spec))] : [];
    const node = make("section", { class: "run", "aria-label": "Answer under " + run.spec }, ...head, folded, tokens, markdown.node, figures);
    const column = { node, run, markdown, thoughts, folded, figures, tokens, view: null };
    this.draw(column);
    return column;
  }

  /** Whether tokens are shown, or text. */
  get showsTokens() {
    return this.answer.runs.some((run) => run.steps.length) && !this.answer.asText;
  }

  draw(column) {
    const { run } = column;
    if (run.steps.length && !column.view) {
      column.view = new RunView(run, this.scale, (view, s) => this.on.choose(this, view, s));
      column.tokens.append(column.view.node);
    }
    column.tokens.hidden = !this.showsTokens;
    column.markdown.node.hidden = this.showsTokens;
    column.folded.hidden = !run.thoughts || this.showsTokens;
    if (column.thoughts.textContent !== run.thoughts) column.thoughts.textContent = run.thoughts;
    if (!this.showsTokens) column.markdown.set(run.text);
    column.figures.textContent = this.figures(run);
  }

  figures(run) {
    const parts = [];
    if (run.ids.length) parts.push(run.ids.length + " tokens");
    if (run.speed) parts.push(fixed(run.speed, 1) + " tokens/s");
    if (run.stop_reason) {
      parts.push("ended by " + run.stop_reason, "seed " + run.seed);
      if (run.steps.length) parts.push("mean entropy " + fixed(run.mean_entropy, 2), "mean gate " + fixed(run.mean_gate, 2));
    }
    if (run.agreement !== null) parts.push(run.parts_at === null ? "same as the first" : "parts at token " + run.parts_at);
    return parts.join("  ·  ");
  }

  /** Shows what an event has added to a run. */
  grew(at, hasStep) {
    const column = this.columns[at];
    if (hasStep && column.view) column.view.added();
    else if (hasStep) this.scale.grow(column.run.steps[0]);
    this.draw(column);
  }

  /** Shows all again: at the end, or in another form. */
  redraw() {
    for (const column of this.columns) {
      column.view?.part(column.run.parts_at);
      column.view?.paint();
      this.draw(column);
    }
  }
}
