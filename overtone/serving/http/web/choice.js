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
    const before = this.model;
    this.base = base.id;
    this.adapters = adapters;
    fill(this.first, this.names, this.names.length ? [] : [["", "none yet"]]);
    this.fillSecond();
    if (this.model !== before) this.changed();
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

  /** "linear, 98,304 parameters" */
  get described() {
    return this.chain
      .map((name) => this.adapters.find((adapter) => adapter.name === name))
      .map(({ kind, parameters }) => `${kind}, ${parameters.toLocaleString("en")} parameters`)
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

function fill(select, names, before) {
  const value = select.value;
  const entries = [...before, ...names.map((name) => [name, name])];
  select.replaceChildren(...entries.map(([name, label]) => new Option(label, name)));
  if (entries.some(([name]) => name === value)) select.value = value;
}
