// Express in front of BullMQ: one POST is checked, added to the queue and answered. Says {"port"} when it listens.
import { Queue } from "bullmq";
import express from "express";
import { options, say } from "./common.mjs";

const o = options({ redis: 0 });
const queue = new Queue("email", { connection: { host: "127.0.0.1", port: o.redis } });
await queue.waitUntilReady();
const app = express();
app.disable("x-powered-by");
app.use(express.json());
app.post("/emails", async (request, response) => {
  const { body } = request;
  if (!body.to || !body.subject) return response.status(422).json({ error: "to and subject are required" });
  const job = await queue.add("email", body, { attempts: 5, backoff: { type: "exponential", delay: 1000 } });
  return response.status(202).json({ id: job.id });
});
const server = app.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
