// remote_end.js send|receive zeromq|grpc ENDPOINT CHANNEL COUNT [FILE]: one end of a channel, by npm's `zeromq` and
// `@grpc/grpc-js` and the contract in protos/, without a line of Towpath. As matrix_end.c: it sends the numbers 0 to
// COUNT - 1, or writes what it receives into FILE, a line each, until the last number. It says "ready" when the other
// side may begin, and a sender begins when it is told a line. A gap in seq is written as "missing N".
'use strict';
const fs = require('fs');
const path = require('path');

const [what, mechanism, endpoint, channel, stated, file] = process.argv.slice(2);
const count = Number(stated);
const payloads = Array.from({ length: count }, (_, number) => Buffer.from(String(number).padEnd(32)));
const lines = [];

function told() {
  console.log('ready');
  return new Promise((resolve) => process.stdin.once('data', resolve));
}

// Returns whether that was the last.
function note(payload) {
  lines.push(payload.toString());
  return parseInt(payload.toString(), 10) === count - 1;
}

async function pushAll() {
  const zmq = require('zeromq');
  const socket = new zmq.Push({ linger: 60000 });
  socket.connect(endpoint);
  await told();
  for (const payload of payloads) await socket.send([channel, payload]);
  socket.close();
}

async function subscribe() {
  const zmq = require('zeromq');
  const socket = new zmq.Subscriber({ receiveHighWaterMark: 0 });
  const ready = `_towpath.ready.${process.pid}`;
  socket.connect(endpoint);
  socket.subscribe(channel, ready);
  let isReady = false;
  let next = 1n;
  for await (const [name, payload, meta] of socket) {
    if (name.toString() === ready) {
      if (!isReady) console.log('ready');
      isReady = true;
      continue;
    }
    const seq = meta.readBigUInt64LE(8);
    if (seq > next) lines.push(`missing ${seq - next}`);
    next = seq + 1n;
    if (note(payload)) break;
  }
  socket.close();
}

function channels() {
  const grpc = require('@grpc/grpc-js');
  const loader = require('@grpc/proto-loader');
  const root = path.join(__dirname, '..', '..', 'protos');
  const definition = loader.loadSync('towpath/v1/channels.proto', { includeDirs: [root], keepCase: true, longs: String });
  const { Channels } = grpc.loadPackageDefinition(definition).towpath.v1;
  return new Channels(endpoint, grpc.credentials.createInsecure());
}

async function publishAll() {
  const client = channels();
  await told();
  const call = client.PublishStream();
  let answered = 0;
  const done = new Promise((resolve, reject) => {
    call.on('error', reject);
    call.on('data', (answer) => { answered += Number(answer.count); });
    call.on('end', resolve);
  });
  for (let first = 0; first < count; first += 100) {
    call.write({ channel: first ? '' : channel, payloads: payloads.slice(first, first + 100) });
  }
  call.end();
  await done;
  if (answered !== count) throw new Error(`${answered} of ${count} were answered`);
  client.close();
}

async function follow() {
  const client = channels();
  const call = client.Subscribe();
  call.write({ channel });
  await new Promise((resolve, reject) => {
    call.on('error', reject);
    call.on('data', (answer) => {
      if (answer.subscribed) console.log('ready');
      else if (answer.batch && answer.batch.payloads.map(note).includes(true)) resolve();
    });
  });
  call.on('error', () => {}); // it is cancelled
  call.cancel();
  client.close();
}

const parts = { send: { zeromq: pushAll, grpc: publishAll }, receive: { zeromq: subscribe, grpc: follow } };
parts[what][mechanism]().then(
  () => {
    if (file) fs.writeFileSync(file, lines.map((line) => `${line}\n`).join(''));
    process.exitCode = 0;
    process.stdin.destroy();
  },
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
