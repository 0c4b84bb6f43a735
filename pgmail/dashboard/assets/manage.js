// Beside app.js: questions that come into the dialog, choosing several dead letters, the preview of a template.
"use strict";
(() => {
  if (window.pgmailManage) return;  // a page that htmx put in loads it again
  window.pgmailManage = true;
  const dialog = () => document.getElementById("ask");

  document.addEventListener("htmx:afterSwap", (event) => {
    const target = event.detail.target;
    if (target?.id === "ask-body") {
      if (!dialog().open) dialog().showModal();
      const first = target.querySelector("[aria-invalid], [autofocus], .my-field input, .my-field select, button.go");
      first?.focus();
    }
    if (target?.id === "preview") {
      const frame = document.querySelector("[data-frame]");
      const shown = target.querySelector("[data-has-html]") !== null;
      frame.hidden = !shown;
      if (shown) submitPreview();
    }
  });

  // What app.js closes after an answer stays open where the answer is to be read: a new key, what an import came to, how many it is about.
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.target?.id === "ask-body" && dialog()?.querySelector(".my-told, [data-stay]") && !dialog().open) dialog().showModal();
  });

  // The HTML goes into a frame without rights, by a form of its own: a part of a page could not hold it.
  const submitPreview = () => {
    const editor = document.getElementById("editor");
    const form = document.createElement("form");
    form.method = "post";
    form.action = "/dashboard/templates/preview/html";
    form.target = "preview-frame";
    form.hidden = true;
    for (const [name, value] of new FormData(editor)) {
      const field = document.createElement("textarea");
      field.name = name;
      field.value = value;
      form.append(field);
    }
    document.body.append(form);
    form.submit();
    form.remove();
  };

  const count = () => {
    const form = document.querySelector("[data-chosen]");
    const bar = form?.querySelector("[data-chosen-bar]");
    if (!bar) return;
    const chosen = form.querySelectorAll('input[name="id"]:checked').length;
    bar.hidden = chosen === 0;
    bar.querySelector("[data-chosen-count]").textContent = String(chosen);
  };
  document.addEventListener("change", (event) => {
    if (event.target instanceof Element && event.target.closest("[data-chosen]")) count();
  });

  document.addEventListener("click", (event) => {
    const at = event.target instanceof Element ? event.target : null;
    const close = at?.closest("[data-close-ask]");
    if (close && dialog()?.contains(close)) { event.preventDefault(); dialog().close(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === " " && event.target instanceof HTMLAnchorElement && event.target.role === "button") {
      event.preventDefault();
      event.target.click();
    }
  });
})();
