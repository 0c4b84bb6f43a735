// BullMQ, alone or with nodemailer.
//   --do fill  queues --jobs of --payload, a thousand a call, and says how many a second
//   --do work  works until the queue has been empty for a second, and says how many it did, first and last (Unix ms)
// With --smtp each job is a mail over pooled connections, the template filled in; without, a job is a no-op.
import { Queue, Worker } from "bullmq";
import nodemailer from "nodemailer";
import { LINE, options, payload, say, thousands } from "./common.mjs";

const o = options({ do: "fill", redis: 0, smtp: 0, jobs: 1000, payload: "small", concurrency: 100, connections: 10 });
const connection = { host: "127.0.0.1", port: o.redis };

if (o.do === "fill") {
  const queue = new Queue("email", { connection });
  await queue.waitUntilReady();
  const began = performance.now();
  for (const numbers of thousands(o.jobs)) {
    await queue.addBulk(
      numbers.map((i) => ({ name: "email", data: payload(o.payload, i), opts: { removeOnComplete: true } })),
    );
  }
  say({ per_s: (o.jobs / (performance.now() - began)) * 1000 });
  await queue.close();
} else {
  let done = 0;
  let first = 0;
  let last = 0;
  let failed = 0;
  const transport =
    o.smtp &&
    nodemailer.createTransport({
      host: "127.0.0.1",
      port: o.smtp,
      secure: false,
      ignoreTLS: true,
      pool: true,
      maxConnections: o.connections,
      maxMessages: Infinity,
    });
  const send = async ({ data }) => {
    const text = LINE.replaceAll("{{name}}", data.name);
    const subject = `Order for ${data.name}`;
    await transport.sendMail({ from: "shop@example.com", to: data.to, subject, text, html: `<p>${text}</p>` });
  };
  const worker = new Worker("email", transport ? send : async () => {}, { connection, concurrency: o.concurrency });
  worker.on("completed", () => {
    last = Date.now();
    first ||= last;
    done += 1;
  });
  worker.on("failed", () => (failed += 1));
  const queue = new Queue("email", { connection });
  setTimeout(() => process.exit(1), 900_000).unref(); // whoever waits for the figures must not wait for ever
  setInterval(async () => {
    if (done && Date.now() - last < 1000) return;
    const left = await queue.getJobCounts("waiting", "active", "prioritized", "delayed");
    if (Object.values(left).some(Boolean)) return;
    say({ done, failed, first, last });
    process.exit(0);
  }, 200);
}
