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
  const raise = () => {  // above a dialog that is open
    const toasts = document.getElementById("toasts");
    if (!toasts.showPopover) return;
    if (toasts.matches(":popover-open")) toasts.hidePopover();
    if (toasts.childElementCount) toasts.showPopover();
  };

  // ---- A session that ends while somebody types: what is on the page is kept, and sent in the next session.
  const meta = (name) => document.querySelector(`meta[name="${name}"]`);
  const typed = () => document.querySelector('dialog[open], .my-refused, [data-chosen] input:checked') !== null
    || [...document.querySelectorAll("form[method=post] :is(input, textarea, select)")].some((field) =>
      field instanceof HTMLSelectElement ? [...field.options].some((one) => one.selected !== one.defaultSelected && !(one.index === 0 && !field.querySelector("[selected]")))
        : field.type === "checkbox" ? field.checked !== field.defaultChecked
          : field.type !== "hidden" && field.value !== field.defaultValue);
  let declined = false;  // who does not want to sign in is asked again by what they do only
  const signedOut = () => {
    const form = document.getElementById("again-template");
    if (!form || !typed()) { location.reload(); return; }
    if (!document.getElementById("again")) document.body.append(form.content.cloneNode(true));
    const again = document.getElementById("again");
    again.onclose = () => { declined = true; };
    if (!again.open) again.showModal();
  };
  // Another session's token for this page, unless it is of another tenant: then this page is not its own.
  const goOn = (said, text) => {
    if (said.tenant !== meta("tenant").content) { location.assign(document.querySelector("a.brand").href); return; }
    meta("csrf").content = said.csrf;
    for (const field of document.querySelectorAll('input[name="csrf"]')) field.value = said.csrf;
    toast(text);
    declined = false;
    tend();
  };
  const ask = async (path, more) => {
    try {
      const answer = await fetch(path, { headers: { Accept: "application/json" }, ...more });
      return await answer.json();
    } catch { return { because: "pgmail cannot be reached. Try again." }; }
  };
  const signIn = async (form) => {
    const fault = form.querySelector("[data-fault]"), button = form.querySelector(".primary");
    button.disabled = true;
    const said = await ask(form.getAttribute("action"), { method: "POST", body: new URLSearchParams(new FormData(form)) });
    button.disabled = false;
    fault.hidden = Boolean(said.csrf);
    fault.textContent = said.because || "";
    if (!said.csrf) { form.querySelector("[name=key]").focus(); return; }
    const again = form.closest("dialog");
    again.onclose = null;
    again.close();  // the focus goes back to where it was
    again.remove();
    goOn(said, "Signed in. Nothing was lost, and nothing done yet: press the button once more.");
  };
  const stale = async () => {
    const said = await ask(`${document.querySelector("a.brand").pathname}/sign-in`);
    if (said.csrf) goOn(said, "You signed in anew since this page was loaded. Nothing was done yet: press the button once more.");
    else signedOut();
  };

  // ---- Live parts: an element with data-live names a stream; what comes replaces what is inside the elements named.
  const streams = new Map();
  const say = (word, text) => {
    for (const state of document.querySelectorAll("[data-live-state]")) {
      state.dataset.liveState = word;
      const words = state.querySelector("[data-live-text]");
      if (words && words.textContent !== text) words.textContent = text;
    }
  };
  // What has the focus is found again in the new part, and what was scrolled stays where it was.
  const SAME = ["id", "href", "name", "aria-label", "aria-labelledby"];
  const keep = (target) => {
    const at = document.activeElement;
    const held = at && at !== target && target.contains(at) ? at : null;
    const scrolled = [...target.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    return () => {
      target.querySelectorAll(".scroll").forEach((box, i) => { if (scrolled[i]) box.scrollLeft = scrolled[i]; });
      if (!held || held.isConnected) return;
      [...target.querySelectorAll(held.tagName)]
        .find((one) => SAME.every((name) => one.getAttribute(name) === held.getAttribute(name)))
        ?.focus({ preventScroll: true });
    };
  };
  const writing = (target) => {  // somebody types in it, or left something there
    const fields = [...target.querySelectorAll("input:not([type=hidden]), textarea")];
    return fields.some((field) => field === document.activeElement || field.value !== field.defaultValue);
  };
  const take = (id, html) => {
    const target = document.getElementById(id);
    if (!target || target.contains(document.querySelector("dialog[open]"))) return;
    const made = document.createElement("template");
    made.innerHTML = html;
    const still = (text) => text.replace(/(data-ago="">)[^<]*/g, "$1");
    if (still(made.innerHTML) === still(target.innerHTML)) return;  // who listens to the page hears of news only
    const back = keep(target);
    target.innerHTML = html;
    if (window.htmx) window.htmx.process(target);
    back();
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
    source.onerror = () => {
      say("off", "Reconnecting…");
      if (source.readyState !== EventSource.CLOSED) return;  // the browser tries again by itself
      setTimeout(() => { if (streams.get(place) === source) { streams.delete(place); tend(); } }, 5000);
    };
    source.addEventListener("parts", (event) => {
      for (const [id, html] of Object.entries(JSON.parse(event.data))) take(id, html);
    });
    source.addEventListener("end", (event) => {
      const why = JSON.parse(event.data);
      if (why === "stopping") return;  // the browser asks again, another process answers
      source.close();
      if (why === "final") { streams.delete(place); delete place.dataset.live; }
      if (why === "signed_out") signedOut();
      else say("done", "Final");
    });
  };
  const tend = () => {
    for (const [place, source] of streams) {
      const over = source.readyState === EventSource.CLOSED;
      if (!place.isConnected || document.hidden || over) { source.close(); streams.delete(place); }
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
      raise();
    }).observe(document.getElementById("toasts"), { childList: true });
    const slot = document.querySelector("[data-toast]");
    if (slot) toast(slot.dataset.toast);
    tend();
    setInterval(tick, 1000);

    document.body.addEventListener("htmx:configRequest", (event) => {
      const token = meta("csrf");
      if (token) event.detail.headers["X-CSRF-Token"] = token.content;
    });
    document.body.addEventListener("signed-out", (event) => {
      if (!declined || !event.target.hasAttribute("data-polls")) signedOut();
    });
    document.body.addEventListener("stale", stale);
    // Parts that ask every few seconds: not for nobody, not under somebody's hands, and quiet when nothing answers.
    const polls = (event) => event.detail.elt?.hasAttribute?.("data-polls");
    let back = () => {};
    document.body.addEventListener("htmx:beforeRequest", (event) => {
      if (polls(event) && document.hidden) event.preventDefault();
    });
    document.body.addEventListener("htmx:beforeSwap", (event) => {
      if (!event.detail.requestConfig?.elt?.hasAttribute("data-polls")) return;
      if (event.detail.isError || writing(event.detail.target)) event.detail.shouldSwap = false;
      else back = keep(event.detail.target);
    });
    document.body.addEventListener("htmx:afterSwap", () => { back(); back = () => {}; });
    document.body.addEventListener("htmx:afterRequest", (event) => {
      if (polls(event)) say(...event.detail.successful ? ["on", "Live"] : ["off", "Reconnecting…"]);
    });
    document.body.addEventListener("toast", (event) => toast(event.detail.text));
    document.body.addEventListener("htmx:afterSettle", () => {
      tend();
      // What had the focus may be gone with the part that was replaced: the keyboard goes on from the page's content.
      if (document.activeElement === document.body) document.getElementById("main")?.focus({ preventScroll: true });
    });
    document.body.addEventListener("htmx:afterRequest", (event) => {
      const dialog = event.detail.elt.closest?.("dialog[open]");
      // What cannot be done any more is told beside it; the dialog is of no use then.
      if (dialog && (event.detail.successful || [403, 404, 409].includes(event.detail.xhr.status))) {
        if (!/\bstale\b/.test(event.detail.xhr.getResponseHeader("HX-Trigger") || "")) dialog.close();
      }
    });
    document.body.addEventListener("htmx:sendError", (event) => {
      if (!polls(event)) toast("pgmail cannot be reached. What you asked for may not have been done: look before you ask again.", true);
    });
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

  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-sign-in]")) return;
    event.preventDefault();
    signIn(event.target);
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
