// ATLAS's HTTP API. Addresses are relative, so that the page works behind the gateway too.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function answer(request) {
  let response;
  try {
    response = await fetch(request);
  } catch {
    throw new ApiError(0, "ATLAS does not answer");
  }
  const text = await response.text();
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    body = null;
  }
  if (response.ok && body !== null) return body;
  const error = body?.error;
  const words = error ? [error.what, error.limit && `limit: ${error.limit}`, error.next].filter(Boolean).join("; ") : "";
  throw new ApiError(response.status, words || `ATLAS answered ${response.status}`);
}

function url(path, query = {}) {
  const target = new URL(`api/v1/${path}`, document.baseURI);
  for (const [key, value] of Object.entries(query)) {
    if (value !== null && value !== undefined) target.searchParams.set(key, value);
  }
  return target;
}

export function get(path, query, signal) {
  return answer(new Request(url(path, query), { signal }));
}

export function ofService(name, part, query, signal) {
  return get(`services/${encodeURIComponent(name)}${part ? `/${part}` : ""}`, query, signal);
}

export function post(path, body, token, key) {
  return answer(
    new Request(url(path), {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json", "Idempotency-Key": key },
      body: JSON.stringify(body),
    }),
  );
}
