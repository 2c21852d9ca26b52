/** One side's transcript: words that can be walked through with the arrow keys, and played from. */

export class Transcript {
  /**
   * @param {HTMLElement} element
   * @param {{play: (word: import("./alignment.js").Word) => void, point: (index: number) => void}} handlers
   *   point: a word is looked at; -1 for none
   */
  constructor(element, { play, point }) {
    this.element = element;
    this.words = [];
    this.nodes = [];
    this.current = -1;
    this.pointed = -1;
    this.play = play;
    this.tail = element.appendChild(document.createElement("span"));
    this.tail.className = "provisional";
    element.addEventListener("click", (event) => this.clicked(event));
    element.addEventListener("keydown", (event) => this.pressed(event));
    element.addEventListener("pointerover", (event) => point(this.indexOf(event.target)));
    element.addEventListener("pointerleave", () => point(-1));
    element.addEventListener("focusin", (event) => point(this.indexOf(event.target)));
    element.addEventListener("focusout", () => point(-1));
  }

  /**
   * @param {import("./alignment.js").Word[]} words
   * @param {import("./alignment.js").Side} side
   * @param {string} provisional what may still change
   * @param {string} otherwise what is said where there are no words
   * @param {Set<number>} wrong words that were not said, where it is known what was
   */
  show(words, side, provisional, otherwise, wrong = new Set()) {
    const follows = this.element.scrollTop + this.element.clientHeight > this.element.scrollHeight - 40;
    words.forEach((word, index) => {
      if (this.words[index] !== word) this.place(word, index);
      this.mark(word, index, side, wrong.has(index));
    });
    for (const node of this.nodes.splice(words.length)) removed(node);
    this.words = [...words];
    const gap = side.gaps.get(words.length) ?? "";
    this.tail.dataset.gap = gap ? "‸" : "";
    this.tail.title = gap && elsewhere(gap);
    this.tail.textContent = provisional || (words.length ? "" : otherwise);
    this.tail.classList.toggle("empty", !provisional && !words.length);
    if (this.current >= words.length) this.current = -1;
    if (!this.nodes.some((node) => node.tabIndex === 0) && this.nodes.length) this.nodes[0].tabIndex = 0;
    if (follows && provisional) this.element.scrollTop = this.element.scrollHeight;
  }

  place(word, index) {
    const node = document.createElement("span");
    node.className = "word";
    node.role = "button";
    node.tabIndex = -1;
    const percent = Math.round(100 * word.confidence);
    const text = document.createElement("span");
    text.textContent = word.text;
    const sure = document.createElement("i");
    sure.style.setProperty("--sure", `${percent}%`);
    const numbers = document.createElement("small");
    numbers.ariaHidden = "true";
    numbers.textContent = `${word.start.toFixed(2)} · ${percent}%`;
    node.classList.toggle("unsure", percent < 50);
    node.append(text, sure, numbers);
    if (this.nodes[index]) this.nodes[index].replaceWith(node);
    else this.tail.before(node, " ");
    this.nodes[index] = node;
  }

  mark(word, index, { marks, gaps }, wrong) {
    const node = this.nodes[index];
    const differs = !marks[index].same;
    const gap = gaps.get(index) ?? "";
    const key = `${differs} ${wrong} ${gap}`;
    if (node.dataset.key === key) return;
    node.dataset.key = key;
    node.dataset.gap = gap ? "‸" : "";
    node.classList.toggle("differs", differs);
    node.classList.toggle("wrong", wrong);
    const told = [described(word), differs && "differs", wrong && "not what was said", gap && elsewhere(gap)].filter(Boolean);
    node.setAttribute("aria-description", told.join("; "));
    node.title = told.join("\n");
  }

  /** Which word is being played; -1 for none. */
  highlight(index) {
    if (index === this.current) return;
    this.nodes[this.current]?.classList.remove("current");
    this.nodes[index]?.classList.add("current");
    this.current = index;
    const node = this.nodes[index];
    if (node) this.reveal(node);
  }

  /** The partner of a word that somebody looks at on the other side; -1 for none. */
  point(index) {
    if (index === this.pointed) return;
    this.nodes[this.pointed]?.classList.remove("pointed");
    this.nodes[index]?.classList.add("pointed");
    this.pointed = index;
  }

  /** Scrolls this transcript alone, never the page. */
  reveal(node) {
    const [top, bottom] = [node.offsetTop, node.offsetTop + node.offsetHeight];
    if (top < this.element.scrollTop) this.element.scrollTop = top - 8;
    else if (bottom > this.element.scrollTop + this.element.clientHeight) {
      this.element.scrollTop = bottom - this.element.clientHeight + 8;
    }
  }

  indexOf(target) {
    return this.nodes.indexOf(target.closest?.(".word"));
  }

  clicked(event) {
    const index = this.indexOf(event.target);
    if (index < 0 || String(getSelection())) return; // somebody is selecting text
    this.focus(index);
    this.play(this.words[index]);
  }

  pressed(event) {
    const index = this.indexOf(event.target);
    if (index < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.nodes.length - 1;
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last, ...this.lines(index, event.key) };
    if (event.key === "Enter" || event.key === " ") this.play(this.words[index]);
    else if (event.key in next) this.focus(Math.max(0, Math.min(last, next[event.key])));
    else return;
    event.preventDefault();
  }

  /** The word above or below, for the arrow that was pressed. */
  lines(index, key) {
    if (key !== "ArrowUp" && key !== "ArrowDown") return {};
    const step = key === "ArrowDown" ? 1 : -1;
    const from = this.nodes[index];
    let line = 0;
    let best = index;
    for (let other = index + step; this.nodes[other]; other += step) {
      const node = this.nodes[other];
      if (node.offsetTop === from.offsetTop) continue;
      line ||= node.offsetTop;
      if (node.offsetTop !== line) break;
      const distance = (candidate) => Math.abs(this.nodes[candidate].offsetLeft - from.offsetLeft);
      if (best === index || distance(other) < distance(best)) best = other;
    }
    return { [key]: best };
  }

  focus(index) {
    for (const node of this.nodes) if (node.tabIndex === 0) node.tabIndex = -1;
    this.nodes[index].tabIndex = 0;
    this.nodes[index].focus({ preventScroll: true });
    this.reveal(this.nodes[index]);
  }
}

function described({ start, end, confidence }) {
  return `${start.toFixed(2)} to ${end.toFixed(2)} s, ${Math.round(100 * confidence)} % sure`;
}

function elsewhere(gap) {
  return `here the other side has “${gap}”`;
}

function removed(node) {
  node.nextSibling?.remove(); // the space behind it
  node.remove();
}
