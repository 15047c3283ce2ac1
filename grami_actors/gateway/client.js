// @ts-check
/**
 * The JavaScript client: ask a Growth Manager over its WebSocket, from a web page, Node or Deno (docs/javascript.md).
 *
 *     import { connect } from "./client.js";
 *     const grami = await connect("ws://127.0.0.1:8765/ws");
 *     const post = await grami.request("content_request", { platform: "instagram" });
 *
 * A lost connection is made anew with backoff. Requests that were in flight end with CONNECTION_LOST, because nobody
 * knows whether they were carried out; subscriptions and jobs go on where they were. All times are in milliseconds.
 *
 * @typedef {string | ((state: { expired: boolean }) => string | Promise<string>)} Token
 *   A token, or what gives one: called for every connection, and with `expired` when the server wants a fresh one.
 * @typedef {"connecting" | "open" | "reconnecting" | "closed"} State
 * @typedef {{ epoch?: string | number, offset?: number }} Position  a place in the server's sequence of events
 *
 * @typedef {{ send(text: string): void, close(): void, onopen: any, onmessage: any, onerror: any, onclose: any }}
 *   Socket
 * @typedef {Record<string, unknown>} Fields  those of a message
 * @typedef {{ type: "event", topic: string, data: any } & Position} TopicEvent
 * @typedef {{ type: "gap", topic: string } & Position} Gap
 *   Events are missing here: the server could not give back what was missed, or they were not read in time.
 * @typedef {{ type: string, id: string, seq?: number, data?: any, from?: string, progress?: number, message?: string,
 *   status?: string, error_code?: string, retryable?: boolean, retry_after_ms?: number, param?: string,
 *   duration_ms?: number, chunks_dropped?: number }} Frame  docs/protocol.md, section 3
 * @typedef {{ type: "job.event", job_id: string, seq: number, at: string, attempt: number, kind: string, data: any }}
 *   JobEvent
 * @typedef {{ retryable?: boolean, retryAfterMs?: number, param?: string, cause?: unknown }} More
 * @typedef {(answer: Frame, link: Link) => void} OnAnswer  called in the very turn in which the answer came
 *
 * @typedef {object} ConnectOptions
 * @property {Token} [token]  who this is; sent in `hello`, never in the URL
 * @property {number} [retryFor]  how long to try to reconnect (30000); 0 never does, Infinity never gives up
 * @property {number} [openTimeout]  how long one try to connect may take (5000)
 * @property {number} [heartbeat]  a connection is lost when a ping has no answer for so long (20000); 0 sends none
 * @property {number} [maxBuffer]  characters that may wait for a reader of events or of a stream (4194304)
 * @property {new (url: string) => Socket} [WebSocket]  the class to use where there is no global one, as in Node 20
 * @property {(state: State, error?: GramiError) => void} [onState]  told of each change, and why it came
 * @property {AbortSignal} [signal]  closes the client
 *
 * @typedef {object} RequestOptions
 * @property {string} [to]  a destination by name; the route of the type if not given
 * @property {number} [timeout]  the deadline; the server's own if not given
 * @property {AbortSignal} [signal]  cancels the request, here and on the server
 * @property {string} [idempotencyKey]  the server carries out what has the same key once
 * @property {string} [traceparent]  a W3C trace context (https://www.w3.org/TR/trace-context/)
 */

const FIRST_DELAY = 100;
const LONGEST_DELAY = 10_000;
const LONGEST_TIMER = 2 ** 31 - 1; // a longer one would end at once
const OVERHEAD = 100; // what a buffered frame counts beside its characters
/** What a close code says about those who come again. @type {Record<number, string>} */
const REFUSALS = { 4401: "UNAUTHENTICATED", 4403: "PERMISSION_DENIED", 4408: "UNAUTHENTICATED", 4419: "TOKEN_EXPIRED" };

const ENDS = new Set(["SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "LOST", "REJECTED"]); // states of a job

/** @param {() => void} ring @param {number} ms */
const alarm = (ring, ms) => setTimeout(ring, Math.min(ms, LONGEST_TIMER));

/** @param {number} code whether a client must not come back by itself after this close code */
const isUnwanted = (code) => code >= 4400 && code < 4500;

/** What the server answered (`code` is its `error_code`), or CONNECTION_LOST or SERVER_NOT_FOUND of the client. */
export class GramiError extends Error {
  /** @param {string} code @param {string} message @param {More} [more] */
  constructor(code, message, { retryable = false, retryAfterMs, param, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "GramiError";
    this.code = code;
    this.retryable = retryable; // whether the same request may succeed when it is sent again
    this.retryAfterMs = retryAfterMs;
    this.param = param; // the path of the faulty field (`$.platform`), where there is one
  }
}

/** What waits for a reader: bounded, and ended at most once. @template T */
class Inbox {
  /** @type {{ item: T, size: number }[]} */ #items = [];
  /** @type {((_?: any) => void)[]} */ #readers = [];
  /** @type {{ error?: unknown } | null} */ #end = null;
  #size = 0;

  /** @param {number} limit */
  constructor(limit) {
    this.limit = limit;
  }

  /** Add an item; false if there is no room. @param {T} item @param {number} size */
  put(item, size) {
    if (this.#end) return true;
    if (this.#items.length && this.#size + size > this.limit) return false;
    this.#items.push({ item, size });
    this.#size += size;
    this.#wake();
    return true;
  }

  /** Nothing more comes, after what is there already. @param {{ error?: unknown }} [end] */
  finish(end = {}) {
    this.#end ??= end;
    this.#wake();
  }

  clear() {
    this.#items = [];
    this.#size = 0;
  }

  /** End it at once: what waits is dropped. @param {{ error?: unknown }} [end] */
  abort(end = {}) {
    this.clear();
    this.#end = end;
    this.#wake();
  }

  /** The next item; undefined after the last. @returns {Promise<T | undefined>} */
  async take() {
    while (!this.#items.length && !this.#end) await new Promise((wake) => this.#readers.push(wake));
    const next = this.#items.shift();
    if (next) this.#size -= next.size;
    else if (this.#end && "error" in this.#end) throw this.#end.error;
    return next?.item;
  }

  #wake() {
    for (const wake of this.#readers.splice(0)) wake();
  }
}

/** One request, from the call to its last frame. @extends {Inbox<Frame>} */
class Call extends Inbox {
  /** Where it waits: in a connection, or for one. @type {Map<string, Call> | null} */ home = null;
  /** @type {Link | null} */ link = null;

  /** @param {string} id @param {Fields} message @param {number} limit @param {OnAnswer} [onAnswer] */
  constructor(id, message, limit, onAnswer) {
    super(limit);
    this.id = id;
    this.text = JSON.stringify({ ...message, id });
    this.streamed = message.stream === true;
    this.onAnswer = onAnswer;
  }

  /** @param {Frame} frame @param {number} size */
  hear(frame, size) {
    if (String(frame.type).startsWith("response.")) {
      if (!this.streamed || this.put(frame, size)) return;
      return this.stop(new GramiError("SLOW_CONSUMER", "the frames of the stream were not read", { retryable: true }));
    }
    this.home?.delete(this.id);
    if (frame.status === "error") {
      const { error_code = "INTERNAL_ERROR", message = "", retryable, retry_after_ms: retryAfterMs, param } = frame;
      this.finish({ error: new GramiError(error_code, message, { retryable, retryAfterMs, param }) });
    } else {
      if (this.link) this.onAnswer?.(frame, this.link);
      this.put(frame, 0);
      this.finish();
    }
    this.link?.settle();
  }

  /** End it with an error at once, here and on the server. @param {unknown} error */
  stop(error) {
    this.abort({ error });
    this.release();
  }

  /** Cancel it on the server, if it has no answer yet. */
  release() {
    if (!this.home?.delete(this.id)) return;
    this.link?.send(JSON.stringify({ type: "cancel", request_id: this.id }));
    this.link?.settle();
  }
}

/** One WebSocket, and the requests that were sent on it. */
class Link {
  /** @type {Map<string, Call>} */ waiting = new Map();
  /** With which code it ended. @type {number | undefined} */ code;
  reason = "";
  leaving = false; // the server asked to: no new requests
  openedAt = 0;
  #retired = false;
  #heard = true;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #pulse;

  /**
   * @param {Socket} socket
   * @param {(link: Link, frame: any, size: number) => void} onFrame  hears the frames that answer no request
   * @param {(link: Link) => void} onEnd
   */
  constructor(socket, onFrame, onEnd) {
    this.socket = socket;
    this.onEnd = onEnd;
    let flaw = "";
    socket.onerror = (/** @type {{ message?: string }} */ event) => (flaw ||= event.message ?? "");
    socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => this.end(code, reason || flaw);
    socket.onmessage = (/** @type {{ data: unknown }} */ event) => {
      this.#heard = true;
      const text = String(event.data);
      let frame;
      try {
        frame = JSON.parse(text);
      } catch {
        return; // a frame that cannot be read must not end the reader
      }
      const size = text.length + OVERHEAD;
      if (/^(event|goaway|job\..*)$/.test(frame?.type)) onFrame(this, frame, size);
      else this.waiting.get(String(frame?.id))?.hear(frame, size);
    };
  }

  /** Take over a call. @param {Call} call */
  adopt(call) {
    call.home = this.waiting;
    call.link = this;
    this.waiting.set(call.id, call);
  }

  /** @param {string} text */
  send(text) {
    if (this.code === undefined) this.socket.send(text);
  }

  /** Look every so often whether the other side is there: a browser does not tell. @param {number} interval */
  watch(interval) {
    this.openedAt = performance.now();
    if (!interval) return;
    this.#pulse = setInterval(() => {
      if (!this.#heard) return this.end(1006, `no sign of life for ${interval} ms`);
      this.#heard = false;
      this.send('{"type":"ping","id":"pulse"}');
    }, Math.min(interval, LONGEST_TIMER));
  }

  /** Close it as soon as nothing is waited for. */
  retire() {
    this.#retired = true;
    this.settle();
  }

  settle() {
    if (this.#retired && !this.waiting.size) this.end(1000, "no longer needed");
  }

  /** It is over, whether the socket knows that or not. @param {number} code @param {string} reason */
  end(code, reason) {
    if (this.code !== undefined) return;
    this.code = code;
    this.reason = reason;
    clearInterval(this.#pulse);
    this.socket.close();
    const calls = [...this.waiting.values()];
    this.waiting.clear();
    const why = `the connection was lost (closed with ${code} ${reason}); the outcome is unknown`;
    const error = new GramiError("CONNECTION_LOST", why);
    for (const call of calls) call.finish({ error });
    this.onEnd(this);
  }
}

/**
 * The events of a topic: `for await (const event of subscription)`. Leaving the loop ends the subscription. It survives
 * reconnecting; where events are missing, a `gap` comes in their place.
 *
 * @implements {AsyncIterableIterator<TopicEvent | Gap>}
 */
export class Subscription {
  /** The connection on which it is heard. @type {Link | null} */ link = null;
  /** @type {Inbox<TopicEvent | Gap>} */ inbox;
  #leave;

  /**
   * @param {string} topic @param {Position | undefined} position
   * @param {number} limit @param {() => Promise<void>} leave
   */
  constructor(topic, position, limit, leave) {
    this.topic = topic;
    this.position = position && { epoch: position.epoch, offset: position.offset };
    this.inbox = new Inbox(limit);
    this.#leave = leave;
  }

  /** The server has it. @param {Link} link @param {Position & { recovered?: boolean }} answer @param {boolean} asked */
  attach(link, { epoch, offset, recovered }, asked) {
    this.link = link;
    if (asked && recovered) return; // the events that were missed follow
    this.position = { epoch, offset };
    if (asked) this.#gap();
  }

  /** Take an event, if it is for this one and new. @param {TopicEvent} event @param {number} size */
  offer(event, size) {
    const { epoch, offset = 0, topic } = event;
    if (!this.#matches(topic) || (epoch === this.position?.epoch && offset <= (this.position?.offset ?? -1))) return;
    this.position = { epoch, offset };
    if (!this.inbox.put(event, size)) this.#gap();
  }

  #gap() {
    /** @type {Gap} */ const gap = { type: "gap", topic: this.topic, ...this.position };
    if (this.inbox.put(gap, OVERHEAD)) return;
    this.inbox.clear();
    this.inbox.put(gap, OVERHEAD);
  }

  /** `*` stands for one word, and `>` at the end for one or more. @param {string} topic */
  #matches(topic) {
    const [pattern, words] = [this.topic.split("."), String(topic).split(".")];
    const rest = pattern.at(-1) === ">" ? pattern.length - 1 : -1;
    if (rest < 0 ? words.length !== pattern.length : words.length < pattern.length) return false;
    return pattern.every((word, at) => word === "*" || word === words[at] || at === rest);
  }

  /** The next event. @returns {Promise<IteratorResult<TopicEvent | Gap, undefined>>} */
  async next() {
    const value = await this.inbox.take();
    return value === undefined ? { done: true, value } : { done: false, value };
  }

  /** @returns {Promise<IteratorResult<TopicEvent | Gap, undefined>>} */
  async return() {
    await this.close();
    return { done: true, value: undefined };
  }

  /** Hear no more. */
  async close() {
    this.inbox.abort();
    await this.#leave();
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

/** A connection to a Growth Manager. Made by {@link connect}; safe for many requests at the same time. */
export class Client {
  /** @type {Link | null} */ #link = null;
  /** @type {Set<Link>} */ #links = new Set();
  /** Calls that wait for a connection. @type {Map<string, Call>} */ #unsent = new Map();
  /** @type {Set<Subscription>} */ #subscriptions = new Set();
  /** @type {Set<{ job_id: string, inbox: Inbox<JobEvent> }>} */ #followers = new Set();
  /** @type {Set<() => void>} */ #pauses = new Set();
  /** @type {State} */ #state = "connecting";
  /** @type {GramiError | null} */ #failure = null;
  /** @type {Promise<void> | null} */ #renewal = null;
  #options;
  #Socket;
  #ids = 0;
  #closed = false;
  #expired = false;
  #renewedAt = -Infinity;
  #delay = FIRST_DELAY;
  /** What the server said of itself and this connection. @type {any} */ welcome = null;

  /** @param {string} url @param {ConnectOptions} options */
  constructor(url, options) {
    this.url = url;
    const Socket = options.WebSocket ?? /** @type {any} */ (globalThis).WebSocket;
    if (!Socket) throw new TypeError("there is no global WebSocket here: give connect() one, as { WebSocket }");
    const { token, retryFor = 30_000, openTimeout = 5_000, heartbeat = 20_000, maxBuffer = 2 ** 22, onState } = options;
    this.#options = { token, retryFor, openTimeout, heartbeat, maxBuffer, onState };
    /** @type {new (url: string) => Socket} */ this.#Socket = Socket;
    /** @param {string} type @returns {(fields?: Fields, options?: RequestOptions) => Promise<any>} */
    const ask = (type) => (fields, options) => this.request(type, fields, options);
    /** Work that outlives the connection: job.submit, and so on (docs/protocol.md, section 4). */
    this.jobs = {
      ...{ submit: ask("job.submit"), get: ask("job.get"), list: ask("job.list") },
      ...{ input: ask("job.input"), cancel: ask("job.cancel"), retry: ask("job.retry"), read: ask("job.read") },
      /**
       * What happens to a job until its end, and what did after the event `after_seq`: each event once, in order, over
       * all connections. Leaving the loop ends it.
       * @param {{ job_id: string, after_seq?: number }} fields @param {RequestOptions} [options]
       */
      attach: (fields, options) => this.#follow(fields, options),
    };
  }

  get state() {
    return this.#state;
  }

  // --- requests ---

  /**
   * Send a request and wait for the `data` of its answer. Rejects with a GramiError, or the reason of the signal.
   * @param {string} type @param {Fields} [fields] @param {RequestOptions} [options]
   * @returns {Promise<any>}
   */
  async request(type, fields = {}, options = {}) {
    let answer;
    for await (const frame of this.#frames(type, fields, options)) answer = frame;
    return answer?.data;
  }

  /**
   * Send a request, when the loop begins, and get its frames while they come; the last has type `response` and the
   * whole answer. Leaving the loop cancels the request. A reader that falls behind by `maxBuffer` gets SLOW_CONSUMER.
   * @param {string} type @param {Fields} [fields] @param {RequestOptions} [options]
   * @returns {AsyncGenerator<Frame, void, undefined>}
   */
  stream(type, fields = {}, options = {}) {
    return this.#frames(type, { ...fields, stream: true }, options);
  }

  /** The message types, agents and tools of the server, with their JSON Schemas. @param {RequestOptions} [options] */
  describe(options) {
    return this.request("describe", {}, options);
  }

  /** Ask the server for a sign of life. @param {RequestOptions} [options] @returns {Promise<void>} */
  async ping(options) {
    await this.request("ping", {}, options);
  }

  /** @param {string} topic @param {unknown} data @param {RequestOptions} [options] */
  publish(topic, data, options) {
    return this.request("publish", { topic, data }, options);
  }

  /**
   * Hear what is published to a topic, or to the topics of a pattern (`news.*`, `news.>`).
   * @param {string} topic
   * @param {{ recover?: Position, timeout?: number, signal?: AbortSignal }} [options]  `recover`: an event, to hear
   *   what came after it; `signal` ends the subscription
   */
  async subscribe(topic, { recover, timeout, signal } = {}) {
    signal?.throwIfAborted();
    const end = () => void made.close();
    /** @type {Subscription} */
    const made = new Subscription(topic, recover, this.#options.maxBuffer, () => {
      signal?.removeEventListener("abort", end);
      return this.#unsubscribe(made);
    });
    this.#subscriptions.add(made);
    try {
      await this.#attach(made, { timeout, signal });
      signal?.throwIfAborted();
    } catch (error) {
      // Without an answer nobody knows whether the server has it.
      if (!(error instanceof GramiError) || error.code === "DEADLINE_EXCEEDED") made.link = this.#link;
      await made.close();
      throw error;
    }
    signal?.addEventListener("abort", end);
    return made;
  }

  /**
   * Tell who this is, on the open connection and from now on; a client that gave up comes back.
   * @param {Token} [token]  a fresh one is asked of the `token` function if not given
   * @returns {Promise<void>}
   */
  async authenticate(token) {
    if (token !== undefined) this.#options.token = token;
    if (this.#link) return this.#authenticate();
    this.reconnectNow();
    return this.ping();
  }

  /** If there is no connection, try at once to make one, also after the client gave up. */
  reconnectNow() {
    for (const wake of this.#pauses) wake();
    if (!this.#failure || this.#closed) return;
    this.#failure = null;
    this.#delay = FIRST_DELAY;
    void this.#reconnect(0);
  }

  /** Close the connection. Requests in flight end with CONNECTION_LOST and are cancelled on the server. */
  close() {
    this.#closed = true;
    this.#finish(new GramiError("CONNECTION_LOST", "the client was closed"));
  }

  /**
   * @param {string} type @param {Fields} fields @param {RequestOptions} options @param {OnAnswer} [onAnswer]
   * @returns {AsyncGenerator<Frame, void, undefined>}
   */
  async *#frames(type, fields, options, onAnswer) {
    let seen = false;
    try {
      for await (const frame of this.#once(type, fields, options, onAnswer)) {
        seen = true;
        yield frame;
      }
      return;
    } catch (error) {
      // A refusal: it was not carried out, so it can be sent again.
      if (seen || error === this.#failure || !this.#isRenewable(error)) throw error;
    }
    this.#expired = true;
    await (this.#renewal ??= this.#authenticate().finally(() => (this.#renewal = null)));
    yield* this.#once(type, fields, options, onAnswer);
  }

  /**
   * @param {string} type @param {Fields} fields @param {RequestOptions} options @param {OnAnswer} [onAnswer]
   * @returns {AsyncGenerator<Frame, void, undefined>}
   */
  async *#once(type, fields, { to, timeout, signal, idempotencyKey, traceparent }, onAnswer) {
    signal?.throwIfAborted();
    if (this.#failure) throw this.#failure;
    /** @type {Fields} */ const message = { ...fields, type };
    if (to !== undefined) message.to = to;
    if (timeout !== undefined) message.timeout_ms = Math.max(1, Math.round(timeout));
    if (idempotencyKey !== undefined) message.idempotency_key = idempotencyKey;
    if (traceparent !== undefined) message.meta = { .../** @type {object} */ (fields.meta), traceparent };
    const call = this.#call(message, onAnswer);
    const abort = () => call.stop(signal?.reason);
    const words = "the deadline passed; the outcome is unknown";
    const late = () => call.stop(new GramiError("DEADLINE_EXCEEDED", words, { retryable: true }));
    const timer = timeout === undefined ? undefined : alarm(late, timeout);
    signal?.addEventListener("abort", abort, { once: true });
    if (this.#link) {
      this.#link.adopt(call);
      this.#link.send(call.text);
    } else {
      call.home = this.#unsent.set(call.id, call);
    }
    try {
      for (let frame; (frame = await call.take()); ) yield frame;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      call.release();
    }
  }

  /** @param {Fields} message @param {OnAnswer} [onAnswer] */
  #call(message, onAnswer) {
    return new Call(String(++this.#ids), message, this.#options.maxBuffer, onAnswer);
  }

  // --- topics ---

  /** @param {Subscription} subscription @param {RequestOptions} [options] */
  async #attach(subscription, options = {}) {
    const { topic, position: recover } = subscription;
    /** @type {OnAnswer} */
    const attach = (answer, link) => {
      subscription.attach(link, answer.data ?? {}, recover !== undefined);
      // The connection was left while the answer was on its way.
      if (this.#link && link !== this.#link) void this.#resubscribe(this.#link);
    };
    for await (const _ of this.#frames("subscribe", { topic, recover }, options, attach));
  }

  /** @param {Subscription} left */
  async #unsubscribe(left) {
    const known = this.#subscriptions.delete(left);
    const shared = [...this.#subscriptions].some((each) => each.topic === left.topic);
    if (!known || shared || !this.#link || left.link !== this.#link) return;
    await this.request("unsubscribe", { topic: left.topic }).catch(() => {});
  }

  /** Tell a new connection what was subscribed to, one after the other, then let go of the old. @param {Link} link */
  async #resubscribe(link) {
    for (const each of [...this.#subscriptions]) {
      while (each.link && each.link !== link && this.#link === link && this.#subscriptions.has(each)) {
        try {
          await this.#attach(each);
        } catch (caught) {
          const error = /** @type {GramiError} */ (caught);
          if (this.#link !== link) return;
          if (error.retryable) await this.#pause(error.retryAfterMs ?? LONGEST_DELAY / 10);
          else if (this.#subscriptions.delete(each)) each.inbox.finish({ error });
        }
      }
    }
    if (this.#link === link) for (const old of this.#links) if (old.leaving) old.retire();
  }

  // --- jobs ---

  /**
   * @param {{ job_id: string, after_seq?: number }} fields @param {RequestOptions} [options]
   * @returns {AsyncGenerator<JobEvent, void, undefined>}
   */
  async *#follow({ job_id, after_seq: seq = 0 }, options) {
    const reader = { job_id, inbox: this.#jobInbox() };
    this.#followers.add(reader);
    try {
      while (!this.#closed) {
        reader.inbox = this.#jobInbox();
        const view = await this.#attachJob({ job_id, after_seq: seq }, options);
        if (!view) continue;
        if (ENDS.has(view.state) && (view.seq <= seq || view.expired)) return;
        for (let event; (event = await reader.inbox.take()) && event.seq <= seq + 1; ) {
          if (event.seq <= seq) continue;
          seq = event.seq;
          yield event;
          if (event.kind === "state" && ENDS.has(event.data.state)) return;
        }
      }
    } finally {
      this.#followers.delete(reader);
      const shared = [...this.#followers].some((each) => each.job_id === job_id);
      if (!shared && this.#link) this.request("job.detach", { job_id }).catch(() => {});
    }
  }

  /** @returns {Inbox<JobEvent>} */
  #jobInbox() {
    return new Inbox(this.#options.maxBuffer);
  }

  /** The view of the job; nothing if the connection was lost. @param {Fields} fields @param {RequestOptions} [options] */
  async #attachJob(fields, options) {
    try {
      return await this.request("job.attach", fields, options);
    } catch (caught) {
      if (this.#failure || !(caught instanceof GramiError) || caught.code !== "CONNECTION_LOST") throw caught;
      await this.#pause(FIRST_DELAY);
    }
  }

  /** @param {any} frame @param {number} size */
  #hearJob(frame, size) {
    for (const { job_id, inbox } of this.#followers) {
      if (job_id !== frame.job_id) continue;
      if (frame.type === "job.detached") inbox.finish({ error: new GramiError(frame.error_code, frame.message) });
      else if (!inbox.put(frame, size)) inbox.finish(); // what was left out is asked for when the rest is read
    }
  }

  // --- the connection ---

  /** Connect for the first time: without trying again. @param {AbortSignal} [signal] */
  async start(signal) {
    signal?.throwIfAborted();
    signal?.addEventListener("abort", () => this.close(), { once: true });
    try {
      await this.#openRenewing();
    } catch (error) {
      this.close();
      signal?.throwIfAborted();
      throw error;
    }
    return this;
  }

  /** Connect; when the token has expired, once more with a fresh one. */
  async #openRenewing() {
    try {
      await this.#open();
    } catch (error) {
      if (!this.#mayRenew(error)) throw error;
      await this.#open();
    }
  }

  async #open() {
    const token = await this.#credential();
    if (this.#closed) throw this.#failure;
    const { openTimeout } = this.#options;
    let link;
    try {
      link = new Link(new this.#Socket(this.url), this.#hear, this.#lost);
    } catch (cause) {
      throw new GramiError("SERVER_NOT_FOUND", `${this.url} cannot be connected to: ${cause}`, { cause });
    }
    this.#links.add(link);
    const message = { type: "hello", protocol: 1, client: { name: "grami_actors/client.js" }, token };
    const hello = this.#call(message, (welcome, to) => this.#use(welcome, to));
    link.adopt(hello);
    link.socket.onopen = () => link.send(hello.text);
    const timer = alarm(() => link.end(1006, `no answer within ${openTimeout} ms`), openTimeout);
    try {
      await hello.take();
    } catch (error) {
      if (link.code !== undefined) throw this.#refusal(link);
      link.end(1000, "refused");
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** @returns {Promise<string | undefined>} */
  async #credential() {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    try {
      return await token({ expired: this.#expired });
    } catch (cause) {
      throw new GramiError("UNAUTHENTICATED", `the token function failed: ${cause}`, { retryable: true, cause });
    }
  }

  async #authenticate() {
    const token = await this.#credential();
    if (token === undefined) throw new GramiError("UNAUTHENTICATED", "there is no token: give one to authenticate()");
    for await (const _ of this.#once("auth", { token }, {}));
    this.#expired = false;
  }

  /** @param {unknown} error */
  #isRenewable(error) {
    return error instanceof GramiError && error.code === "TOKEN_EXPIRED" && typeof this.#options.token === "function";
  }

  /** Whether to connect again with a fresh token; not twice in a row. @param {unknown} error */
  #mayRenew(error) {
    if (!this.#isRenewable(error) || performance.now() - this.#renewedAt < LONGEST_DELAY) return false;
    this.#renewedAt = performance.now();
    this.#expired = true;
    return true;
  }

  /** What is said of a connection that ended, to those who want one. @param {Link} link */
  #refusal({ code = 1006, reason, openedAt }) {
    const closed = `closed with ${code} ${reason}`.trim();
    const refusal = isUnwanted(code) && REFUSALS[code];
    if (refusal) return new GramiError(refusal, `the server wants no connection: ${closed}`);
    if (openedAt) return new GramiError("CONNECTION_LOST", `the connection was lost: ${closed}`);
    const why = `no Growth Manager answers at ${this.url}: ${closed}`;
    return new GramiError("SERVER_NOT_FOUND", why, { retryable: !isUnwanted(code) });
  }

  /** The server said welcome. @param {Frame} welcome @param {Link} link */
  #use(welcome, link) {
    this.#link = link;
    this.welcome = welcome;
    this.#expired = false;
    link.watch(this.#options.heartbeat);
    for (const call of this.#unsent.values()) {
      link.adopt(call);
      link.send(call.text);
    }
    this.#unsent.clear();
    for (const { inbox } of this.#followers) inbox.finish(); // they attach anew
    this.#tell("open");
    void this.#resubscribe(link);
  }

  /** @param {Link} link @param {any} frame @param {number} size */
  #hear = (link, frame, size) => {
    if (frame.type.startsWith("job.")) {
      if (link === this.#link) this.#hearJob(frame, size);
    } else if (frame.type === "event") {
      for (const each of this.#subscriptions) if (each.link === link) each.offer(frame, size);
    } else if (link === this.#link && this.#options.retryFor) {
      const { min = 0, max = min } = frame.reconnect_after_ms ?? {};
      const patience = this.#options.retryFor + (frame.close_in_ms ?? 0);
      link.leaving = true;
      this.#link = null;
      // Jitter: the clients of one server must not leave it at the same moment.
      const why = new GramiError("SHUTTING_DOWN", `the server goes away: ${frame.reason}`);
      void this.#reconnect(min + Math.random() * (max - min), why, patience);
    }
  };

  /** @param {Link} link */
  #lost = (link) => {
    this.#links.delete(link);
    if (link !== this.#link) return;
    this.#link = null;
    const error = this.#refusal(link);
    if (!this.#options.retryFor || (isUnwanted(link.code ?? 0) && !this.#mayRenew(error))) return this.#finish(error);
    if (performance.now() - link.openedAt > LONGEST_DELAY) this.#delay = FIRST_DELAY;
    // 1012, a restart: all clients of the server lost it at the same moment.
    const jitter = link.code === 1012 ? Math.random() * (this.welcome.reconnect_jitter_ms ?? 0) : 0;
    void this.#reconnect(jitter + this.#backoff(), error);
  };

  /** @param {number} wait @param {GramiError} [why] @param {number} [patience] */
  async #reconnect(wait, why, patience = this.#options.retryFor) {
    this.#tell("reconnecting", why);
    let until;
    while (!this.#failure) {
      await this.#pause(wait);
      until ??= performance.now() + patience;
      if (this.#failure) return;
      try {
        return await this.#openRenewing();
      } catch (caught) {
        const error = /** @type {GramiError} */ (caught);
        wait = Math.max(this.#backoff(), error.retryAfterMs ?? 0);
        if (!error.retryable || performance.now() + wait > until) return this.#finish(error);
      }
    }
  }

  #backoff() {
    const delay = this.#delay;
    this.#delay = Math.min(delay * 2, LONGEST_DELAY);
    return delay * (0.5 + Math.random() / 2);
  }

  /** Wait, but not past reconnectNow() and the end. @param {number} ms */
  async #pause(ms) {
    /** @type {() => void} */ let wake = () => {};
    const woken = new Promise((/** @type {(_?: any) => void} */ resolve) => (wake = resolve));
    const timer = alarm(wake, ms);
    this.#pauses.add(wake);
    await woken;
    clearTimeout(timer);
    this.#pauses.delete(wake);
  }

  /** End everything, what comes later too. @param {GramiError} error */
  #finish(error) {
    if (this.#state === "closed" && !this.#closed) return;
    this.#failure = error;
    this.#link = null;
    for (const call of this.#unsent.values()) call.finish({ error });
    this.#unsent.clear();
    for (const each of this.#subscriptions) each.inbox.finish(this.#closed ? {} : { error });
    this.#subscriptions.clear();
    for (const { inbox } of this.#followers) inbox.finish(this.#closed ? {} : { error });
    for (const link of this.#links) this.#closed ? link.end(1000, "the client was closed") : link.retire();
    for (const wake of this.#pauses) wake();
    this.#tell("closed", error);
  }

  /** @param {State} state @param {GramiError} [error] */
  #tell(state, error) {
    if (state === this.#state) return;
    this.#state = state;
    const { onState } = this.#options;
    if (onState) queueMicrotask(() => onState(state, error));
  }
}

/**
 * Connect to a Growth Manager. Rejects with a GramiError, such as SERVER_NOT_FOUND, or the reason of the signal.
 * @param {string | URL} [url]  where the server is; `/ws` on the host of the page if not given
 * @param {ConnectOptions} [options]
 * @returns {Promise<Client>}
 */
export async function connect(url = "/ws", options = {}) {
  let found;
  try {
    found = new URL(url, globalThis.location?.href);
  } catch (cause) {
    const hint = "connect() takes an address such as ws://127.0.0.1:8765/ws";
    throw new GramiError("SERVER_NOT_FOUND", `${url} is none; ${hint}`, { cause });
  }
  found.protocol = found.protocol.replace(/^http/, "ws");
  found.hash = "";
  return new Client(found.href, options).start(options.signal);
}
