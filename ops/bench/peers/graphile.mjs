// Graphile Worker: queues --jobs, a thousand a call, then works them as no-ops in one process with its local queue and
// batched completion, its fastest published mode. Says how many a second of both. --work 0 only queues.
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { options, payload, say, thousands } from "./common.mjs";

const o = options({ dsn: "", jobs: 1000, payload: "small", concurrency: 24, work: 1 });
const logger = new Logger(() => () => {});
const utils = await makeWorkerUtils({ connectionString: o.dsn, logger });
await utils.migrate();
let began = performance.now();
for (const numbers of thousands(o.jobs)) {
  await utils.addJobs(numbers.map((i) => ({ identifier: "noop", payload: payload(o.payload, i) })));
}
const enqueue_per_s = (o.jobs / (performance.now() - began)) * 1000;
await utils.release();
if (!o.work) {
  say({ enqueue_per_s });
  process.exit(0);
}
let done = 0;
let first = 0;
const noop = async () => {
  first ||= performance.now();
  done += 1;
  if (done < o.jobs) return;
  const per_s = ((o.jobs - 1) / (performance.now() - first)) * 1000;
  // The last completions are written in a batch; they belong to the work, but not to its rate.
  setTimeout(() => {
    say({ enqueue_per_s, per_s });
    process.exit(0);
  }, 300);
};
const preset = {
  worker: {
    connectionString: o.dsn,
    concurrentJobs: o.concurrency,
    maxPoolSize: o.concurrency + 2,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger,
  },
};
await run({ preset, noHandleSignals: true, taskList: { noop } });
