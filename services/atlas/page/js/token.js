// The operator's token: kept for this tab, and never where another tab or a later visit would find it.

const KEY = "atlas-operator-token";

export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keepToken(text) {
  sessionStorage.setItem(KEY, text.trim());
}

export function forgetToken() {
  sessionStorage.removeItem(KEY);
}

/** Take `#token=…` out of the address, before it gets into a bookmark or over somebody's shoulder. */
export function takeTokenFromAddress() {
  const found = /^#token=([A-Za-z0-9_-]+)$/.exec(location.hash);
  if (!found) return;
  keepToken(found[1]);
  history.replaceState(null, "", location.pathname + location.search);
}
