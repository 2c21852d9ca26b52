/** The place where the page says what went wrong, and what to do. */

export class Notice {
  /**
   * @param {HTMLElement} element an alert with .message, .advice and a button
   * @param {HTMLElement} next gets the focus where the notice had it
   */
  constructor(element, next) {
    this.element = element;
    this.next = next;
    this.message = element.querySelector(".message");
    this.advice = element.querySelector(".advice");
    this.button = element.querySelector("button");
    this.again = null;
    this.button.addEventListener("click", () => this.again?.());
  }

  /** @param {import("./problem.js").Problem} problem @param {(() => void) | null} again tries it once more */
  show(problem, again = null) {
    this.again = again;
    this.element.hidden = false;
    this.message.textContent = problem.message;
    this.advice.textContent = problem.advice ?? "";
    this.button.hidden = !again;
  }

  clear() {
    if (this.element.contains(document.activeElement)) this.next.focus({ preventScroll: true });
    this.element.hidden = true;
    this.message.textContent = "";
    this.advice.textContent = "";
    this.again = null;
  }
}
