// Runs as a chart and shaded tokens, each with what was fed next. `moi trace` writes this into its page, and the chat
// page of `moi serve` imports it.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties and children. Text is never read as HTML. */
export const make = (tag, props, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key === "class") node.className = value;
    else if (key.startsWith("aria-") || key.startsWith("data-") || key === "role" || key === "for") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
};
const draw = (tag, attributes, text) => {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
export const fixed = (value, digits) => Number(value).toFixed(digits);
export const percent = (value) => (100 * value).toFixed(Math.abs(value) < 0.0995 ? 2 : 1) + "%";
/** A token's text with what cannot be seen in it: line ends, spaces, bytes of a character that others complete. */
export const shown = (text) => text === "" ? "∅" : text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣");

/** What tokens can be shaded by. */
const SHADES = {
  entropy: { colour: "--entropy", of: (step) => step.entropy },
  gate: { colour: "--gate", of: (step) => step.gate },
  surprise: { colour: "--surprise", of: (step) => -step.logprob },
};

/** The largest values of several runs, by which all of them are shaded and drawn. */
export class Scale {
  constructor(steps) {
    this.shade = "entropy";
    this.most = { entropy: 1e-6, gate: 1e-6, surprise: 1e-6 };
    steps.forEach((step) => this.grow(step));
  }

  /** Takes a step; whether a largest value is larger now. */
  grow(step) {
    let grew = false;
    for (const [name, { of }] of Object.entries(SHADES)) {
      if (of(step) > this.most[name]) {
        this.most[name] = of(step);
        grew = true;
      }
    }
    return grew;
  }

  strength(name, step) {
    return Math.sqrt(Math.min(1, Math.max(0, SHADES[name].of(step) / this.most[name])));
  }
}

/** A run's chart and tokens. Steps may be added while it is shown. */
export class RunView {
  constructor(run, scale, onChoose) {
    Object.assign(this, { run, scale, onChoose, tokens: [], chosen: null, drawn: 0, timer: 0 });
    this.text = make("div", { class: "text", role: "listbox", "aria-label": "Tokens of " + run.spec });
    this.chart = new Chart(run, scale, (step) => onChoose(this, step));
    this.node = make("div", {}, this.chart.node, this.text);
    run.steps.forEach((_, s) => this.addToken(s));
    this.paint();
    this.text.addEventListener("click", (event) => {
      const at = this.tokens.indexOf(event.target.closest(".token"));
      if (at >= 0) onChoose(this, at);
    });
    this.text.addEventListener("keydown", (event) => {
      const last = this.run.steps.length - 1;
      const from = this.chosen ?? 0;
      const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last, Enter: from, " ": from }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      event.stopPropagation();
      onChoose(this, Math.min(last, Math.max(0, to)));
      this.tokens[this.chosen]?.focus();
    });
  }

  addToken(s) {
    const step = this.run.steps[s];
    const node = make("span", { class: "token", role: "option", "aria-selected": "false", tabIndex: s ? -1 : 0 });
    if (step.text === "") node.append(make("span", { class: "mark", "aria-hidden": "true" }, "·"));
    else node.append(step.text);
    node.title = `step ${s}: entropy ${fixed(step.entropy, 2)}, gate ${fixed(step.gate, 2)}`;
    if (this.run.parts_at === s) node.classList.add("parts");
    if (step.drafted?.accepted) {
      node.classList.add("drafted");
      node.title += ", an accepted draft";
    }
    this.tokens.push(node);
    this.text.append(node);
    this.shadeToken(s);
  }

  /** Shows a step that was added to the run. The chart follows a little later, and so does what a larger scale changes. */
  added() {
    const grew = this.scale.grow(this.run.steps[this.tokens.length]);
    this.addToken(this.tokens.length);
    this.stale ||= grew;
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      if (this.stale) this.paint();
      else this.chart.draw();
      this.stale = false;
    }, Math.min(1000, 100 + this.tokens.length / 4));
  }

  shadeToken(s) {
    const step = this.run.steps[s];
    const { shade } = this.scale;
    const style = this.tokens[s].style;
    const gate = step.gate > 0 ? 0.25 + 0.75 * this.scale.strength("gate", step) : 0;
    style.backgroundColor = `rgba(var(${SHADES[shade].colour}), ${fixed(0.55 * this.scale.strength(shade, step), 3)})`;
    style.borderBottomColor = `rgba(var(--gate), ${fixed(gate, 3)})`;
  }

  /** Marks where the run parts from the first. */
  part(at) {
    this.run.parts_at = at;
    this.tokens.forEach((node, s) => node.classList.toggle("parts", s === at));
  }

  paint() {
    this.tokens.forEach((_, s) => this.shadeToken(s));
    this.chart.draw();
  }

  /** Marks a step as chosen; none where it is null. */
  choose(s) {
    const mark = (at, is) => {
      const node = this.tokens[at];
      if (!node) return;
      node.classList.toggle("chosen", is);
      node.setAttribute("aria-selected", String(is));
      node.tabIndex = is ? 0 : -1;
    };
    if (this.chosen !== null) mark(this.chosen, false);
    if (s === null && this.tokens.length) this.tokens[0].tabIndex = 0;
    else if (this.tokens.length) this.tokens[0].tabIndex = -1;
    this.chosen = s;
    if (s !== null) mark(s, true);
    this.chart.mark(s);
  }
}

/** Entropy and gate over the steps. */
class Chart {
  constructor(run, scale, onChoose) {
    Object.assign(this, { run, scale, width: 600, height: 120, left: 26, bottom: 14, chosen: null });
    this.svg = draw("svg", { class: "chart", viewBox: `0 0 ${this.width} ${this.height}`, preserveAspectRatio: "none", role: "img" });
    this.labels = make("div", { class: "labels", "aria-hidden": "true" });
    this.node = make("div", { class: "plot" }, this.svg, this.labels);
    this.svg.addEventListener("click", (event) => {
      const box = this.svg.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width * this.width;
      const count = this.run.steps.length;
      const step = Math.floor((at - this.left) / (this.width - this.left) * count);
      if (count) onChoose(Math.min(count - 1, Math.max(0, step)));
    });
  }

  x(s) {
    return this.left + (s + 0.5) * (this.width - this.left) / Math.max(this.run.steps.length, 1);
  }

  draw() {
    const { run, width, height, left, bottom } = this;
    const top = Math.max(this.scale.most.entropy, this.scale.most.gate);
    const y = (value) => (height - bottom) * (1 - value / top) + 2;
    // Of very many steps no more are drawn than can be seen.
    const every = Math.max(1, Math.ceil(run.steps.length / 2000));
    const line = (of) => {
      let path = "";
      for (let s = 0; s < run.steps.length; s += every) path += `${s ? "L" : "M"}${this.x(s).toFixed(1)} ${y(of(run.steps[s])).toFixed(1)}`;
      return path;
    };
    const parts = [draw("title", {}, "entropy and gate over the steps")];
    this.labels.replaceChildren();
    // Labels keep their shape while the drawing is stretched: they lie over it.
    const label = (at, down, text, anchor) => {
      const node = make("span", {}, text);
      node.style.top = (100 * down / height).toFixed(1) + "%";
      if (anchor === "end") node.style.right = "0";
      else node.style.left = (100 * at / width).toFixed(2) + "%";
      this.labels.append(node);
    };
    for (const value of [0, top / 2, top]) {
      parts.push(draw("line", { x1: left, x2: width, y1: y(value), y2: y(value), stroke: "var(--line)", "vector-effect": "non-scaling-stroke" }));
      label(0, y(value) + 3, value.toFixed(top < 0.2 ? 2 : 1), "start");
    }
    if (run.steps.length) {
      const stroke = (d, colour) => draw("path", { d, fill: "none", stroke: `rgb(var(${colour}))`, "stroke-width": 1.4, "vector-effect": "non-scaling-stroke" });
      const entropy = line((step) => step.entropy);
      const last = run.steps.length - 1;
      parts.push(draw("path", { d: entropy + `L${this.x(last - last % every)} ${y(0)}L${this.x(0)} ${y(0)}Z`, fill: "rgba(var(--entropy), .16)" }));
      parts.push(stroke(entropy, "--entropy"), stroke(line((step) => step.gate), "--gate"));
    }
    label(left, height, "0", "start");
    label(width, height, String(Math.max(run.steps.length - 1, 0)), "end");
    this.cursor = draw("line", { x1: 0, x2: 0, y1: 0, y2: height - bottom + 2, stroke: "var(--mark)", "stroke-dasharray": "3 3", "vector-effect": "non-scaling-stroke" });
    this.svg.replaceChildren(...parts, this.cursor);
    this.mark(this.chosen);
  }

  mark(s) {
    this.chosen = s;
    this.cursor?.setAttribute("visibility", s === null ? "hidden" : "visible");
    if (s !== null) for (const end of ["x1", "x2"]) this.cursor?.setAttribute(end, this.x(s));
  }
}

function bars(rows, own, colour, value, take) {
  const most = Math.max(1e-9, ...rows.map((row) => Math.abs(value(row))));
  return rows.map((row) => {
    const fill = make("div", { class: "fill" });
    fill.style.width = (100 * Math.abs(value(row)) / most).toFixed(1) + "%";
    fill.style.background = `rgb(var(${value(row) < 0 ? "--surprise" : colour}))`;
    const node = make("div", { class: "row" + (row.token === own ? " own" : ""), title: "token " + row.token },
      make("span", { class: "word" }, shown(row.text)),
      make("span", { class: "track" }, fill),
      make("span", { class: "value" }, percent(value(row))));
    if (take && row.token !== own) {
      node.append(make("button", { type: "button", class: "take", title: "go on with this token instead",
        "aria-label": "Go on with " + shown(row.text) + " instead", onclick: () => take(row.token) }, "↳"));
    }
    return node;
  });
}

/** The drafts of the pass that gave a step, as a tree; those that were accepted are marked. */
function drafts(run, s) {
  const own = run.steps[s].drafted;
  if (!own) return [];
  const first = s - own.depth;
  const tree = run.steps[first].drafted?.tree ?? [];
  if (!tree.length) return [];
  // The nodes that the pass walked through: the accepted drafts, one behind the other.
  const walked = new Set();
  for (let at = first, parent = null; run.steps[at]?.drafted?.round === own.round && run.steps[at].drafted.accepted; at++) {
    const node = tree.findIndex((draft) => draft.parent === parent && draft.token === run.steps[at].token);
    walked.add(node);
    parent = node;
  }
  const branch = (parent) => {
    const list = make("ul", {});
    tree.forEach((draft, at) => {
      if (draft.parent !== parent) return;
      list.append(make("li", {}, make("span", { class: walked.has(at) ? "word accepted" : "word" }, shown(draft.text)), branch(at)));
    });
    return list.children.length ? list : "";
  };
  return [make("h3", {}, `Drafts of pass ${own.round}: ${walked.size} of ${tree.length} accepted`), make("div", { class: "drafts" }, branch(null))];
}

/** What is known of a step. With `take`, another token can be taken in its place. */
export function detail(run, s, take) {
  const step = run.steps[s];
  const facts = make("dl", {});
  for (const [name, value] of [["entropy", fixed(step.entropy, 4)], ["gate", fixed(step.gate, 4)],
    ["log-probability", fixed(step.logprob, 4)], ["token", step.token]]) {
    facts.append(make("dt", {}, name), make("dd", {}, String(value)));
  }
  return [
    make("div", { class: "where" }, `step ${s} of ${run.steps.length}, ${run.spec}`),
    make("div", { class: "name" }, shown(step.piece)),
    facts,
    make("h3", {}, step.gate > 0 ? "Fed next: largest weights" : "Fed next"),
    ...bars(step.top, step.token, "--gate", (row) => row.weight),
    make("h3", {}, "Distribution"),
    ...bars(step.likeliest, step.token, "--entropy", (row) => Math.exp(row.logprob), take),
    ...drafts(run, s),
  ];
}

function figures(run) {
  const ends = [run.steps.length + " tokens", "ended by " + run.stop_reason];
  if (run.agreement !== null) ends.push(run.parts_at === null ? "same as the first" : "parts at token " + run.parts_at);
  // Entropies on different supports cannot be compared: say which it is.
  const support = typeof run.rule.support === "number" ? run.rule.support + " tokens" : "the vocabulary";
  const means = ["mean entropy " + fixed(run.mean_entropy, 3) + " on " + support, "mean gate " + fixed(run.mean_gate, 3)];
  return ends.join("  ·  ") + "\n" + means.join("  ·  ");
}

/** The page of `moi trace`. */
export function showRuns(data) {
  const by = (id) => document.getElementById(id);
  const scale = new Scale(data.runs.flatMap((run) => run.steps));
  document.title = "moi trace: " + data.runs.map((run) => run.spec).join(", ");
  by("facts").textContent = [data.model, data.device + " " + data.dtype, data.sampled, "seed " + data.seed].join("  ·  ");
  by("prompt").textContent = data.prompt;
  by("parting").hidden = data.runs.length < 2;
  by("drafting").hidden = !data.runs.some((run) => run.steps.some((step) => step.drafted?.accepted));
  let chosen = null;
  const choose = (view, s) => {
    if (!view.run.steps[s]) return;
    views.forEach((other) => other.choose(other === view ? s : null));
    chosen = { view, step: s };
    by("detail").replaceChildren(...detail(view.run, s),
      make("div", { class: "hint" }, "Click a token or the chart; ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " walk."));
  };
  const views = data.runs.map((run) => new RunView(run, scale, choose));
  views.forEach((view) => by("runs").append(make("section", { class: "card run" },
    make("h2", {}, view.run.spec), make("div", { class: "figures" }, figures(view.run)), view.node)));
  const paint = () => {
    views.forEach((view) => view.paint());
    const { colour } = SHADES[scale.shade];
    by("ramp").style.background = `linear-gradient(90deg, transparent, rgba(var(${colour}), .55))`;
    by("most").textContent = scale.shade === "surprise" ? fixed(scale.most.surprise, 1) + " nats" : fixed(scale.most[scale.shade], 2);
    for (const button of document.querySelectorAll("[data-shade]")) {
      button.setAttribute("aria-pressed", String(button.dataset.shade === scale.shade));
    }
  };
  document.querySelectorAll("[data-shade]").forEach((button) => button.addEventListener("click", () => {
    scale.shade = button.dataset.shade;
    paint();
  }));
  document.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move && chosen) {
      choose(chosen.view, Math.min(chosen.view.run.steps.length - 1, Math.max(0, chosen.step + move)));
      event.preventDefault();
    }
  });
  paint();
  // The run that mixes most, where it is most in doubt, says most.
  const most = (list, of) => list.reduce((best, item, i) => of(item) > of(list[best]) ? i : best, 0);
  const view = views[most(data.runs, (run) => run.mean_gate)];
  if (view) choose(view, most(view.run.steps, (step) => step.entropy));
}
