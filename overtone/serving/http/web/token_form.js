/** Where a token is given, which a server with tokens asks for. */

import { setToken, token } from "./token.js";

export class TokenForm {
  /**
   * @param {HTMLFormElement} form
   * @param {HTMLButtonElement} opener
   * @param {() => Promise<boolean>} use whether the server takes the token
   */
  constructor(form, opener, use) {
    this.form = form;
    this.opener = opener;
    this.use = use;
    this.field = form.querySelector("input");
    this.message = form.querySelector("[role=alert]");
    this.again = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.change(this.field.value);
    });
    form.querySelector("[type=button]").addEventListener("click", () => this.change(""));
    opener.addEventListener("click", () => (form.hidden ? this.open("") : this.close()));
    opener.hidden = !token();
  }

  get given() {
    return token() !== "";
  }

  /** @param {() => void} again what the token is wanted for */
  ask(again) {
    this.again = again;
    this.open(this.given ? "The server does not know this token." : "This server asks for a token.");
  }

  open(message) {
    this.form.hidden = this.opener.hidden = false;
    this.opener.ariaExpanded = "true";
    this.message.textContent = message;
    this.field.focus();
  }

  close() {
    this.form.hidden = true;
    this.opener.hidden = !this.given;
    this.opener.ariaExpanded = "false";
  }

  async change(value) {
    setToken(value);
    this.field.value = "";
    const again = this.again;
    if (!(await this.use())) return;
    this.again = null;
    again?.();
  }
}
