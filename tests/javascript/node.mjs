// Plays one of cases.mjs in Node: `node node.mjs CASE URL WS GIVEN`, where WS is the path of the package ws, and GIVEN is
// JSON for the case. What the case says is printed, a line of JSON each, and what it tells at the end; it waits for lines
// with `go`. Node ends only if the client leaves nothing behind.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as cases from "./cases.mjs";

// Older Nodes take a .js file for CommonJS, whatever is in it; what a data URL holds is a module.
const source = readFileSync(new URL("../../grami_actors/gateway/client.js", import.meta.url));
const { GramiError, connect } = await import(`data:text/javascript;base64,${source.toString("base64")}`);
const [name, url, ws, given] = process.argv.slice(2);
const WebSocket = createRequire(import.meta.url)(ws);
const say = (value) => console.log(JSON.stringify(value));
const go = async () => {
  await new Promise((resolve) => process.stdin.once("data", resolve).resume());
  process.stdin.pause();
};
const tools = { GramiError, say, go, given: JSON.parse(given) };
say(await cases[name]({ connect: (options) => connect(url, { WebSocket, ...options }), ...tools }));
