/** Which adapter, or which two in a row, is compared with the base: as many as the server lists for the token. */

import { models } from "./server.js";

export class Choice {
  /** @param {HTMLSelectElement} first @param {HTMLSelectElement} second @param {() => void} changed */
  constructor(first, second, changed) {
    this.first = first;
    this.second = second;
    this.changed = changed;
    this.base = "";
    this.adapters = [];
    first.addEventListener("change", () => this.chosen());
    second.addEventListener("change", () => this.chosen());
  }

  /** Asks the server; the choice stays as far as it can. Throws Problem. */
  async refresh() {
    const [base, ...others] = await models();
    const adapters = others.map(({ adapter }) => adapter);
    if (base.id === this.base && JSON.stringify(adapters) === JSON.stringify(this.adapters)) return;
    const before = `${this.model} ${this.learner}`;
    this.base = base.id;
    this.adapters = adapters;
    const fresh = !this.names.includes(this.first.value);
    fill(this.first, this.names, this.names.length ? [] : [["", "none yet"]]);
    if (fresh && this.names.length) this.first.value = best(adapters);
    this.fillSecond();
    if (`${this.model} ${this.learner}` !== before) this.changed();
  }

  get names() {
    return this.adapters.map(({ name }) => name);
  }

  /** The names that are chosen, in the order in which they act. */
  get chain() {
    return [this.first.value, this.second.value].filter(Boolean);
  }

  /** What the server calls it; null where there is no adapter. */
  get model() {
    return this.chain.length ? [this.base, ...this.chain].join("+") : null;
  }

  /** The one adapter that is chosen, if it learns from this page's corrections; else an empty text. */
  get learner() {
    const [name, ...others] = this.chain;
    return !others.length && this.adapters.find((adapter) => adapter.name === name)?.learns ? name : "";
  }

  /** "trained on 6 min of speech, word errors 70 → 49 %", or "linear, 98,304 parameters" where that is not known */
  get described() {
    return this.chain
      .map((name) => this.adapters.find((adapter) => adapter.name === name))
      .map(told)
      .join("; ");
  }

  set disabled(value) {
    this.first.disabled = value || !this.adapters.length;
    this.second.disabled = value;
  }

  chosen() {
    this.fillSecond();
    this.changed();
  }

  fillSecond() {
    fill(this.second, this.names.filter((name) => name !== this.first.value), [["", "nothing more"]]);
    this.second.closest(".field").hidden = this.adapters.length < 2;
    this.disabled = false;
  }
}

/** The name of the adapter that has gained most by its card; the first where no card tells. */
function best(adapters) {
  const gain = ({ training }) => (training?.wer_before ?? 0) - (training?.wer_after ?? 0);
  return adapters.reduce((most, next) => (gain(next) > gain(most) ? next : most)).name;
}

function told({ kind, parameters, training = {} }) {
  const { hours, wer_before: before, wer_after: after } = training;
  const speech = hours >= 1 ? `${hours.toFixed(1)} h` : `${Math.max(1, Math.round(60 * hours))} min`;
  const known = [
    hours && `trained on ${speech} of speech`,
    before != null && after != null && `word errors ${Math.round(100 * before)} → ${Math.round(100 * after)} %`,
  ].filter(Boolean);
  return known.length ? known.join(", ") : `${kind}, ${parameters.toLocaleString("en")} parameters`;
}

function fill(select, names, before) {
  const value = select.value;
  const entries = [...before, ...names.map((name) => [name, name])];
  select.replaceChildren(...entries.map(([name, label]) => new Option(label, name)));
  if (entries.some(([name]) => name === value)) select.value = value;
}
