// What a conversation is answered with: input rules, sampling, a system prompt.
import { make } from "./trace.js";

/** Fields of a request that are numbers. */
const FIELDS = [
  ["temperature", "Temperature", 0, 5, 0.05],
  ["top_p", "Top p", 0, 1, 0.01],
  ["top_k", "Top k", 0, 100000, 1],
  ["min_p", "Min p", 0, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", 0.1, 5, 0.05],
  ["max_tokens", "Tokens at most", 1, 1000000, 1],
  ["seed", "Seed", 0, 4294967295, 1],
];
const MAX_RULES = 4;

export const initial = (rule) => ({ rules: [rule], system: "", fields: {}, trace: true });

/** `name:knob=value,...`, in parts. */
function parsed(spec) {
  const [name, rest = ""] = spec.split(/:(.*)/s);
  const knobs = Object.fromEntries(rest.split(",").filter(Boolean).map((part) => part.split("=")));
  return { name, knobs };
}

const written = ({ name, knobs }) => {
  const set = Object.entries(knobs).filter(([, value]) => value !== "");
  return name + (set.length ? ":" + set.map(([knob, value]) => `${knob}=${value}`).join(",") : "");
};

/** The fields of a request. */
export function request(settings, seed) {
  const body = { ...settings.fields, seed };
  const moi = settings.rules.length > 1 ? { rules: settings.rules } : { rule: settings.rules[0] };
  if (settings.trace) {
    moi.trace = 10;
    Object.assign(body, { logprobs: true, top_logprobs: 10 });
  }
  return { ...body, moi, return_token_ids: true };
}

/** A form for settings, which calls `changed` with new ones. */
export function form(settings, rules, defaults, changed) {
  const change = (fields) => {
    Object.assign(settings, fields);
    changed(settings);
  };
  const list = make("div", { class: "rules" });
  const drawRules = () => list.replaceChildren(...settings.rules.map((spec, at) => ruleRow(spec, at)),
    ...(settings.rules.length < MAX_RULES ? [make("button", { type: "button", onclick: () => {
      change({ rules: [...settings.rules, rules.find((rule) => !settings.rules.some((s) => parsed(s).name === rule.rule))?.rule ?? "token"] });
      drawRules();
    } }, "Compare with another rule")] : []));
  const ruleRow = (spec, at) => {
    const { name, knobs } = parsed(spec);
    const known = rules.find((rule) => rule.rule === name);
    const set = (next) => {
      change({ rules: settings.rules.map((old, other) => other === at ? written(next) : old) });
    };
    const select = make("select", { "aria-label": "Rule " + (at + 1), onchange: () => {
      set({ name: select.value, knobs: {} });
      drawRules();
    } }, ...rules.map((rule) => make("option", { value: rule.rule, selected: rule.rule === name }, rule.rule)));
    const inputs = (known?.knobs ?? []).map(({ name: knob, help, default: value }) => make("label", { title: help }, knob, make("input", {
      value: knobs[knob] ?? "", placeholder: value ?? "", size: 6,
      onchange: (event) => set({ name, knobs: { ...parsed(settings.rules[at]).knobs, [knob]: event.target.value.trim() } }),
    })));
    const remove = settings.rules.length > 1 ? [make("button", { type: "button", "aria-label": "Remove rule " + (at + 1), onclick: () => {
      change({ rules: settings.rules.filter((_, other) => other !== at) });
      drawRules();
    } }, "×")] : [];
    return make("fieldset", {}, make("legend", {}, "Rule " + (at + 1)), make("div", { class: "rule-row" }, select, ...remove),
      make("p", { class: "soft" }, known?.help ?? ""), make("div", { class: "knobs" }, ...inputs));
  };
  drawRules();
  const number = ([name, label, min, max, step]) => make("label", {}, label, make("input", {
    type: "number", min, max, step, value: settings.fields[name] ?? "", placeholder: String(defaults[name] ?? (name === "seed" ? "random" : "")),
    onchange: (event) => {
      const { [name]: _, ...others } = settings.fields;
      const value = event.target.valueAsNumber;
      if (!event.target.checkValidity()) return event.target.reportValidity();
      return change({ fields: Number.isNaN(value) ? others : { ...others, [name]: value } });
    },
  }));
  return [
    make("h3", {}, "Input rules"), list,
    make("label", { class: "check" }, make("input", { type: "checkbox", checked: settings.trace,
      onchange: (event) => change({ trace: event.target.checked }) }), "Show the mixture of every token"),
    make("h3", {}, "Sampling"),
    make("div", { class: "numbers" }, ...FIELDS.map(number)),
    make("label", { class: "system" }, "System prompt", make("textarea", { rows: 3, value: settings.system,
      onchange: (event) => change({ system: event.target.value }) })),
  ];
}
