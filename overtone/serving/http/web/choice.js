/** Which adapter, or which two in a row, is compared with its base: as many as the server lists for the token. */

import { models } from "./server.js";

export class Choice {
  /**
   * @param {HTMLSelectElement} bases of the bases, seen where there are several
   * @param {HTMLSelectElement} first
   * @param {HTMLSelectElement} second
   * @param {(rebased?: boolean) => void} changed rebased: the base itself is another one
   */
  constructor(bases, first, second, changed) {
    this.bases = bases;
    this.listed = [];
    this.first = first;
    this.second = second;
    this.changed = changed;
    this.base = "";
    this.adapters = [];
    bases.addEventListener("change", () => this.show());
    first.addEventListener("change", () => this.chosen());
    second.addEventListener("change", () => this.chosen());
  }

  /** Asks the server; the choice stays as far as it can. Throws Problem. */
  async refresh() {
    this.listed = await models();
    const bases = this.listed.filter(({ id, root }) => id === root).map(({ id }) => id);
    const shown = [...this.bases.options].map(({ value }) => value);
    if (JSON.stringify(bases) !== JSON.stringify(shown)) fill(this.bases, bases, []);
    this.bases.closest(".field").hidden = bases.length < 2;
    this.show();
  }

  /** Shows the chosen base's adapters, of those that the server has listed. */
  show() {
    const base = this.bases.value;
    const adapters = this.listed
      .filter(({ id, adapter }) => adapter && id === `${base}+${adapter.name}`)
      .map(({ adapter }) => adapter);
    if (base === this.base && JSON.stringify(adapters) === JSON.stringify(this.adapters)) return;
    const before = `${this.model} ${this.learner}`;
    const rebased = base !== this.base;
    this.base = base;
    this.adapters = adapters;
    const fresh = !this.names.includes(this.first.value);
    fill(this.first, this.names, this.names.length ? [] : [["", "none yet"]]);
    if (fresh && this.names.length) this.first.value = best(adapters);
    this.fillSecond();
    if (rebased || `${this.model} ${this.learner}` !== before) this.changed(rebased);
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
    this.bases.disabled = value;
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
