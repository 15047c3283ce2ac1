// What a program does with the client; tests/test_javascript_client.py plays the other side, and judges what is told.

/** The code of an error, or its name where it has none. */
const flaw = (promise) =>
  promise.then(
    (value) => `no error but ${JSON.stringify(value)}`,
    (error) => (typeof error.code === "string" ? error.code : error.name),
  );

async function collect(frames) {
  const found = [];
  for await (const frame of frames) found.push(frame);
  return found;
}

/** A subscription's next events, in short. */
async function take(subscription, count) {
  const found = [];
  for (let left = count; left; left--) {
    const { value } = await subscription.next();
    found.push(value.type === "gap" ? "gap" : value.data);
  }
  return found;
}

// --- with a real server ---

export async function jobs({ connect }) {
  const grami = await connect();
  const { job_id } = await grami.jobs.submit({ tool: "ask", arguments: { n: 3_000 } });
  const seqs = [];
  for await (const { seq, data } of grami.jobs.attach({ job_id })) {
    seqs.push(seq);
    if (data.state === "INPUT_REQUIRED") await grami.jobs.input({ job_id, answer: "this" });
  }
  const late = [];
  for await (const { seq } of grami.jobs.attach({ job_id, after_seq: seqs.length })) late.push(seq);
  const view = await grami.jobs.get({ job_id });
  const unknown = await grami.jobs.attach({ job_id: "none" }).next().catch(({ code }) => code);
  grami.close();
  return { seqs, late, state: view.state, result: view.result, unknown };
}

export async function conversation({ connect, GramiError }) {
  const states = [];
  const grami = await connect({ onState: (state) => states.push(state) });
  const told = {
    answer: await grami.request("echo", { text: "für \u{1f600} \u2028", number: 5 }),
    named: await grami.request("tool_call", { arguments: { text: "x" } }, { to: "tool:shout" }),
    frames: await collect(grami.stream("story", { pieces: 2 })),
    described: Object.keys(await grami.describe()).length > 0,
    pong: (await grami.ping()) === undefined,
    principal: grami.welcome.principal,
    reserved: await flaw(grami.jobs.get({ job_id: "1" })),
    unencodable: await flaw(grami.request("echo", { text: 1n })),
  };
  const error = await grami.request("fail", { how: "reject" }).catch((each) => each);
  const { code, retryable, param, message } = error;
  told.error = { code, retryable, param, message, ours: error instanceof GramiError };
  const many = Array.from({ length: 50 }, (_, number) => grami.request("async_echo", { text: "x", number }));
  told.many = (await Promise.all(many)).every((each, number) => each.number === number);
  grami.close();
  told.closed = await flaw(grami.request("echo", { text: "x" }));
  told.states = states;
  return told;
}

export async function leaving({ connect }) {
  const grami = await connect();
  for await (const frame of grami.stream("slow")) if (frame.type === "response.started") break;
  const inside = new AbortController();
  const stream = grami.stream("slow", {}, { signal: inside.signal });
  await stream.next();
  const next = stream.next();
  inside.abort();
  const told = [await flaw(next)];
  const outside = new AbortController();
  const request = grami.request("slow", {}, { signal: outside.signal });
  outside.abort(new RangeError("enough"));
  told.push(await flaw(request), await flaw(grami.request("slow", {}, { signal: outside.signal })));
  told.push(await flaw(grami.request("slow", {}, { timeout: 30 })));
  await grami.ping();
  grami.close();
  return told;
}

export async function losing({ connect }) {
  const states = [];
  const grami = await connect({ onState: (state, error) => states.push([state, error?.code ?? null]) });
  const stream = grami.stream("slow");
  const told = [(await stream.next()).value.type];
  const all = Promise.all([flaw(stream.next()), flaw(grami.request("slow"))]);
  await grami.request("echo", { text: "ready" });
  told.push(await all, (await grami.request("echo", { text: "again" })).text, states.slice());
  grami.close();
  return told;
}

export async function waiting({ connect, say }) {
  let gone = () => {};
  const lost = new Promise((resolve) => (gone = resolve));
  const grami = await connect({ onState: (state) => state === "reconnecting" && gone() });
  await grami.request("echo", { text: "x" });
  await lost;
  const impatient = await flaw(grami.request("echo", { text: "x" }, { timeout: 20 }));
  const aborted = await flaw(grami.request("echo", { text: "x" }, { signal: AbortSignal.timeout(20) }));
  const patient = grami.request("echo", { text: "patient" });
  say("waits");
  const answer = await patient;
  grami.close();
  return [impatient, aborted, answer.text];
}

export async function giving_up({ connect }) {
  let grami;
  let gone = () => {};
  let patient = null;
  const closed = new Promise((resolve) => (gone = resolve));
  const onState = (state) => {
    if (state === "reconnecting") patient ??= flaw(grami.request("echo", { text: "waits in vain" }));
    if (state === "closed") gone();
  };
  grami = await connect({ retryFor: 150, onState });
  await grami.request("echo", { text: "x" });
  const slow = flaw(grami.request("slow"));
  await closed;
  const told = [await slow, await patient, await flaw(grami.request("echo", { text: "x" })), grami.state];
  grami.reconnectNow();
  told.push(grami.state);
  grami.close();
  return told;
}

export async function closing({ connect }) {
  const grami = await connect();
  const stream = grami.stream("slow");
  await stream.next();
  const next = flaw(stream.next());
  grami.close();
  return [await next, grami.state];
}

export async function lagging({ connect }) {
  const grami = await connect({ maxBuffer: 1_000 });
  const stream = grami.stream("story", { pieces: 100 });
  const first = flaw(stream.next());
  await grami.request("story", { pieces: 100 });
  const overflowed = [await first, await flaw(collect(stream))].includes("SLOW_CONSUMER");
  const told = [overflowed, (await grami.request("echo", { text: "x".repeat(5_000) })).text.length];
  grami.close();
  return told;
}

export async function refused({ connect }) {
  return [await flaw(connect({ openTimeout: 100 })), await flaw(connect({ signal: AbortSignal.abort() }))];
}

export async function misused({ connect }) {
  const told = [await flaw(connect({ WebSocket: null }))];
  const wrong = class {
    constructor() {
      throw new SyntaxError("no");
    }
  };
  return [...told, await flaw(connect({ WebSocket: wrong }))];
}

export async function credentials({ connect, given, say }) {
  const asked = [];
  const states = [];
  let closed;
  const over = new Promise((resolve) => (closed = resolve));
  const token = async ({ expired }) => given[asked.push(expired) - 1];
  const onState = (state, error) => {
    states.push([state, error?.code ?? null]);
    if (state === "open") say(state);
    if (state === "closed") closed();
  };
  const grami = await connect({ token, onState });
  await over;
  const later = await flaw(grami.request("echo", { text: "x" }));
  grami.close();
  return { asked, states, later };
}

export async function renewal({ connect, given, say, go }) {
  const asked = [];
  const grami = await connect({ token: ({ expired }) => given[asked.push(expired) - 1] });
  const echo = async (text) => (await grami.request("echo", { text })).text;
  say("connected");
  await go();
  const told = [await Promise.all([echo("one"), echo("two")])];
  say("renewed");
  await go();
  told.push(await flaw(echo("three")));
  await grami.authenticate(given[0]);
  told.push(await echo("four"));
  grami.close();
  return [...told, asked];
}

export async function returning({ connect, given, say }) {
  let over;
  const closed = new Promise((resolve) => (over = resolve));
  const [old, fresh] = given;
  const grami = await connect({ token: old, onState: (state) => state === "closed" && over() });
  say("connected");
  await closed;
  const away = await flaw(grami.ping());
  await grami.authenticate(fresh);
  const told = [away, (await grami.request("echo", { text: "here" })).text, grami.state];
  grami.close();
  return told;
}

export async function extras({ connect, given }) {
  const grami = await connect();
  const subscription = await grami.subscribe("news.*");
  const published = await grami.publish("news.x", { n: 1 });
  const told = [published.topic, await take(subscription, 1)];
  await subscription.close();
  const options = { idempotencyKey: "k", traceparent: given };
  for (let twice = 2; twice; twice--) {
    const { data, replayed = false } = (await collect(grami.stream("story", { pieces: 1 }, options))).at(-1);
    told.push([data, replayed]);
  }
  told.push(await flaw(grami.request("story", { pieces: 2 }, options)));
  told.push(await flaw(grami.publish("no topic", 1)), await flaw(grami.subscribe("a..b")));
  grami.close();
  return told;
}

export async function draining({ connect, say, go }) {
  let left;
  const goodbye = new Promise((resolve) => (left = resolve));
  const grami = await connect({ onState: (state) => state === "reconnecting" && left() });
  const subscription = await grami.subscribe("news");
  const first = grami.request("slow", { text: "first" });
  await grami.ping();
  say("flying");
  await goodbye;
  const told = [(await grami.request("echo", { text: "second" })).text];
  say("second");
  told.push(await first);
  say("landed");
  told.push(await take(subscription, 3));
  grami.close();
  return told;
}

export async function following({ connect, say }) {
  const grami = await connect();
  const told = [];
  const subscription = await grami.subscribe("news.*");
  say("hears");
  for await (const event of subscription) {
    told.push([event.type, event.topic, event.data ?? null, event.offset]);
    say(told.length);
    if (event.data === "last") break;
  }
  await grami.ping();
  grami.close();
  return told;
}

export async function heard({ connect, say, go }) {
  const grami = await connect();
  const all = await Promise.all(["a.*", "a.>", ">", "a.b", "b.*"].map((name) => grami.subscribe(name)));
  say("hears");
  await go();
  await grami.ping();
  grami.close();
  return Promise.all(all.map(async (each) => (await collect(each)).map((event) => event.topic)));
}

export async function sharing({ connect, say, go }) {
  const grami = await connect();
  const [one, two] = [await grami.subscribe("news"), await grami.subscribe("news")];
  await one.close();
  await grami.ping();
  say("one");
  const told = await take(two, 1);
  await two.close();
  await two.close();
  say("none");
  await go();
  grami.close();
  return [...told, (await collect(one)).length];
}

export async function flooded({ connect, say, go }) {
  const grami = await connect({ maxBuffer: 1_000 });
  const subscription = await grami.subscribe("news");
  say("hears");
  await go();
  await grami.ping();
  const told = await take(subscription, 2);
  grami.close();
  return [...told, (await collect(subscription)).length];
}

// --- with a server that the test plays ---

export async function strange({ connect }) {
  const grami = await connect();
  const told = await grami.request("anything");
  grami.close();
  return told;
}

export async function going_away({ connect }) {
  const grami = await connect();
  const subscription = await grami.subscribe("news");
  const first = grami.request("first");
  await grami.request("leave");
  const told = [await grami.request("second"), await first, await take(subscription, 3)];
  grami.close();
  return told;
}

export async function moving({ connect }) {
  let left;
  const goodbye = new Promise((resolve) => (left = resolve));
  const grami = await connect({ onState: (state) => state === "reconnecting" && left() });
  const subscription = grami.subscribe("news");
  await goodbye;
  await grami.request("first");
  const told = await take(await subscription, 1);
  grami.close();
  return told;
}

export async function unwelcome({ connect }) {
  let closed;
  const over = new Promise((resolve) => (closed = resolve));
  const grami = await connect({ onState: (state) => state === "closed" && closed() });
  await over;
  const told = await flaw(grami.request("anything"));
  grami.close();
  return told;
}

export async function recovering({ connect }) {
  const grami = await connect();
  const subscription = await grami.subscribe("news.*", { recover: { epoch: "a", offset: 3 } });
  const told = [];
  for await (const event of subscription) {
    told.push([event.type, event.topic, event.data ?? null, event.epoch, event.offset]);
    if (event.data === "last") break;
  }
  grami.close();
  return told;
}

export async function resubscribing({ connect }) {
  const grami = await connect();
  const [kept, ended] = [await grami.subscribe("kept"), await grami.subscribe("ended")];
  const told = [await flaw(collect(ended)), await take(kept, 1)];
  const ender = new AbortController();
  const aborted = await grami.subscribe("aborted", { signal: ender.signal });
  ender.abort();
  told.push(await collect(aborted), await flaw(grami.subscribe("refused")));
  const early = new AbortController();
  const unanswered = grami.subscribe("early", { signal: early.signal });
  early.abort();
  told.push(await flaw(unanswered));
  grami.close();
  return told;
}

export async function listening({ connect }) {
  const states = [];
  let over;
  const twice = new Promise((resolve) => (over = resolve));
  const onState = (state) => states.push(state) === 3 && over();
  const grami = await connect({ heartbeat: 40, onState });
  await twice;
  grami.close();
  return states;
}

export async function at_once({ connect }) {
  const states = [];
  let grami;
  const onState = (state) => {
    states.push(state);
    if (state === "reconnecting") grami.reconnectNow();
  };
  grami = await connect({ onState });
  await grami.request("fall");
  await grami.request("anything");
  grami.close();
  return states;
}
