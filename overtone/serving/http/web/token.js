/** The bearer token of this tab. It is forgotten when the tab is closed, and lies in no file. */

const KEY = "overtone-token";
let kept = stored();

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is switched off: memory alone has to do
  }
}

export function token() {
  return kept;
}

/** @param {string} value empty to forget it */
export function setToken(value) {
  kept = value.trim();
  try {
    if (kept) sessionStorage.setItem(KEY, kept);
    else sessionStorage.removeItem(KEY);
  } catch {
    // kept in memory
  }
}
