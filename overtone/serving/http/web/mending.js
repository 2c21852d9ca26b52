/** A transcript that somebody puts right: the adapter learns from it, and the next recording is recognised with it. */

import { plainText } from "./captions.js";
import { correct, goBack, learning } from "./server.js";

const EVERY = 1000;
/** Milliseconds between looks at what the learner does. */

export class Mending {
  /**
   * @param {HTMLFormElement} form
   * @param {{say: (text: string) => void, fail: (problem: Error) => void, learnt: () => Promise<void>}} handlers
   *   learnt: another version is in service
   */
  constructor(form, { say, fail, learnt }) {
    this.form = form;
    this.text = form.querySelector("textarea");
    this.state = form.querySelector("[role=status]");
    this.backwards = form.querySelector("[type=button]");
    this.say = say;
    this.fail = fail;
    this.learnt = learnt;
    /** The adapter that is watched; empty for none. */
    this.name = "";
    this.version = null;
    this.audio = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.attempt(() => this.learn());
    });
    this.backwards.addEventListener("click", () => this.attempt(() => this.back()));
  }

  /** @param {string} name of an adapter that learns; empty where none does, or none alone is chosen */
  use(name) {
    if (name === this.name) return;
    this.name = name;
    this.version = null;
    this.state.textContent = "";
    this.backwards.hidden = true;
    this.form.hidden = true;
  }

  /**
   * @param {Blob | null} audio
   * @param {import("./alignment.js").Word[]} words that the adapter heard
   * @param {string} said where it is known
   */
  offer(audio, words, said) {
    this.audio = audio;
    this.form.hidden = !this.name || !audio;
    this.text.value = said || plainText(words);
  }

  async learn() {
    const text = this.text.value.trim();
    if (!text) return;
    this.say("Sending the correction …");
    const told = await correct(this.name, text, this.audio);
    this.version = told.version;
    if (!told.new) this.say("That is known already.");
    else this.say("Written down; its words are learnt now.");
    await this.watch();
  }

  async back() {
    const told = await goBack(this.name);
    this.version = told.version;
    this.tell(told);
    await this.learnt();
    this.say(`Gone back to version ${told.version}.`);
  }

  /** Looks until the learner has ended, or another adapter is chosen. */
  async watch() {
    const { name } = this;
    for (;;) {
      const told = await learning(name);
      if (name !== this.name) return;
      this.tell(told);
      if (told.version !== this.version) {
        this.version = told.version;
        await this.learnt();
        this.say(`Learnt: version ${told.version}. What comes next is recognised with it.`);
      }
      if (!["waiting", "words", "training"].includes(told.phase)) return;
      await new Promise((resolve) => setTimeout(resolve, EVERY));
    }
  }

  tell({ phase, step, steps, message, version, corrections }) {
    const doing = {
      waiting: "Waiting for its turn …",
      words: "Learning the words …",
      training: steps ? `Training, step ${step} of ${steps} …` : "Training …",
      failed: message ? `The training failed: ${message}` : "The training failed.",
      ended: "The training was cut off; it goes on with the next correction.",
    };
    const has = version === null ? "" : `Version ${version}, ${corrections} ${corrections === 1 ? "correction" : "corrections"}.`;
    this.state.textContent = [has, doing[phase]].filter(Boolean).join(" ");
    this.backwards.hidden = !version;
  }

  async attempt(work) {
    const buttons = [...this.form.querySelectorAll("button")];
    for (const button of buttons) button.disabled = true;
    try {
      await work();
    } catch (problem) {
      this.fail(problem);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }
}
