// What pages do beside htmx: theme, menu, dialogs, toasts, live parts, the keyboard. No inline scripts, no evaluation.
"use strict";
(() => {
  const root = document.documentElement;

  // ---- Theme: the system's, unless chosen here. Before the page is painted.
  const stored = () => { try { return localStorage.getItem("pgmail-theme"); } catch { return null; } };
  const chosen = stored();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const toggleTheme = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("pgmail-theme", root.dataset.theme); } catch { /* kept for this page only */ }
  };

  // ---- Toasts
  const toast = (text, bad) => {
    const box = document.createElement("div");
    box.className = bad ? "toast bad" : "toast";
    box.textContent = text;
    document.getElementById("toasts")?.append(box);
  };
  const fade = (box) => setTimeout(() => box.remove(), box.classList.contains("bad") ? 12000 : 6000);

  // ---- Live parts: an element with data-live names a stream; what comes replaces what is inside the elements named.
  const streams = new Map();
  const say = (word, text) => {
    for (const state of document.querySelectorAll("[data-live-state]")) {
      state.dataset.liveState = word;
      const words = state.querySelector("[data-live-text]");
      if (words && words.textContent !== text) words.textContent = text;
    }
  };
  const take = (id, html) => {
    const target = document.getElementById(id);
    if (!target || target.contains(document.querySelector("dialog[open]"))) return;
    const at = document.activeElement;
    const kept = at && at.id && target.contains(at) ? at.id : null;
    target.innerHTML = html;
    if (window.htmx) window.htmx.process(target);
    if (kept) document.getElementById(kept)?.focus();
    allow();
    target.dispatchEvent(new CustomEvent("pgmail:live", { bubbles: true }));
  };
  // Buttons are shown by the states that allow them: [data-when] of a button, [data-states] of what is on the page.
  const allow = () => {
    const place = document.querySelector("[data-states]");
    if (!place) return;
    const states = new Set(place.dataset.states.split(" "));
    for (const button of document.querySelectorAll("[data-when]")) {
      button.hidden = !button.dataset.when.split(" ").some((state) => states.has(state));
    }
  };
  const open = (place) => {
    const source = new EventSource(place.dataset.live);
    streams.set(place, source);
    source.onopen = () => say("on", "Live");
    source.onerror = () => say("off", "Reconnecting…");
    source.addEventListener("parts", (event) => {
      for (const [id, html] of Object.entries(JSON.parse(event.data))) take(id, html);
    });
    source.addEventListener("end", (event) => {
      const why = JSON.parse(event.data);
      if (why === "stopping") return;  // the browser asks again, another process answers
      source.close();
      streams.delete(place);
      delete place.dataset.live;
      if (why === "signed_out") location.reload();
      else say("done", "Final");
    });
  };
  const tend = () => {
    for (const [place, source] of streams) {
      if (!place.isConnected || document.hidden) { source.close(); streams.delete(place); }
    }
    if (document.hidden) return;
    for (const place of document.querySelectorAll("[data-live]")) if (!streams.has(place)) open(place);
  };

  // ---- Times stay true while a page is open.
  const span = (s) => s < 100 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : s < 129600
    ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
  const tick = () => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const s = Math.round((Date.now() - Date.parse(time.dateTime)) / 1000);
      const text = Math.abs(s) < 2 ? "just now" : s > 0 ? `${span(s)} ago` : `in ${span(-s)}`;
      if (time.textContent !== text) time.textContent = text;
    }
  };

  // ---- Charts: what is below the pointer, at once and in one place.
  const point = (event) => {
    const hit = event.target instanceof Element ? event.target.closest("rect.hit") : null;
    let tip = document.getElementById("tip");
    if (!hit) { tip?.remove(); return; }
    if (!tip) {
      tip = document.createElement("div");
      tip.id = "tip";
      tip.setAttribute("aria-hidden", "true");
    }
    const title = hit.querySelector("title");
    if (title) { hit.dataset.text = title.textContent; title.remove(); }
    tip.textContent = hit.dataset.text;
    const drawing = hit.closest(".drawing");
    if (tip.parentElement !== drawing) drawing.append(tip);
    const box = drawing.getBoundingClientRect(), column = hit.getBoundingClientRect();
    tip.classList.toggle("left", column.left - box.left > box.width / 2);
  };

  document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver((changes) => {
      for (const change of changes) for (const node of change.addedNodes) if (node instanceof HTMLElement) fade(node);
    }).observe(document.getElementById("toasts"), { childList: true });
    const slot = document.querySelector("[data-toast]");
    if (slot) toast(slot.dataset.toast);
    tend();
    setInterval(tick, 1000);

    document.body.addEventListener("htmx:configRequest", (event) => {
      const token = document.querySelector('meta[name="csrf"]');
      if (token) event.detail.headers["X-CSRF-Token"] = token.content;
    });
    document.body.addEventListener("toast", (event) => toast(event.detail.text));
    document.body.addEventListener("htmx:afterSettle", () => {
      tend();
      // What had the focus may be gone with the part that was replaced: the keyboard goes on from the page's content.
      if (document.activeElement === document.body) document.getElementById("main")?.focus({ preventScroll: true });
    });
    document.body.addEventListener("htmx:afterRequest", (event) => {
      const dialog = event.detail.elt.closest?.("dialog[open]");
      if (dialog && event.detail.successful) dialog.close();
    });
    document.body.addEventListener("htmx:sendError", () => toast("pgmail cannot be reached. Nothing was changed.", true));
    document.addEventListener("pointermove", point, { passive: true });
    document.addEventListener("visibilitychange", tend);
  });

  document.addEventListener("click", (event) => {
    const at = event.target instanceof Element ? event.target : null;
    if (!at) return;
    const opener = at.closest("[data-open]");
    if (opener) document.getElementById(opener.dataset.open)?.showModal();
    if (at.closest("[data-close]")) at.closest("dialog")?.close();
    if (at instanceof HTMLDialogElement) at.close();  // beside its form
    if (at.closest("[data-theme-toggle]")) toggleTheme();
    const menu = at.closest("[data-menu]");
    if (menu) {
      const shown = document.body.classList.toggle("menu-open");
      menu.setAttribute("aria-expanded", String(shown));
    }
    const copied = at.closest("[data-copy]");
    if (copied) navigator.clipboard?.writeText(copied.dataset.copy).then(() => toast("Copied."));
  });

  document.addEventListener("change", (event) => {
    if (event.target instanceof HTMLSelectElement && event.target.closest("form[data-auto]")) event.target.form.requestSubmit();
  });

  document.addEventListener("keydown", (event) => {
    const at = event.target instanceof Element ? event.target : null;
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || at?.closest("input, textarea, select")) return;
    const search = document.querySelector('input[type="search"]');
    if (search) { event.preventDefault(); search.focus(); search.select(); }
  });
})();
