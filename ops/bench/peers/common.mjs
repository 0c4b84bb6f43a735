// What the drivers on Node.js share: options from the command line, the message of the race, one line of JSON.

export const options = (defaults) => {
  const found = { ...defaults };
  const words = process.argv.slice(2);
  for (let i = 0; i < words.length; i += 2) {
    const name = words[i].replace(/^--/, "");
    if (!(name in defaults) || i + 1 >= words.length) throw new Error(`unknown or empty option ${words[i]}`);
    found[name] = typeof defaults[name] === "number" ? Number(words[i + 1]) : words[i + 1];
  }
  return found;
};

export const LINE = "Hello {{name}}, thank you for your order. ".repeat(45);

// The three contents of the race: a job to do nothing with, a mail from a template, a whole mail of about 4 kB.
export const payload = (kind, i) => {
  const to = `u${i}@example${i % 20}.com`;
  if (kind === "small") return { from: "shop@example.com", to, subject: "Hello", text: "Hi, your order shipped." };
  if (kind === "template") return { to, name: `User ${i}` };
  const text = LINE.replaceAll("{{name}}", "User");
  return { from: "shop@example.com", to, subject: "Order for User", text, html: `<p>${text}</p>` };
};

export const thousands = function* (total) {
  for (let low = 0; low < total; low += 1000) yield Array.from({ length: Math.min(1000, total - low) }, (_, j) => low + j);
};

export const say = (facts) => process.stdout.write(`${JSON.stringify(facts)}\n`);
