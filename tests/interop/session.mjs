// The session's frames, and one gateway's end of it. Written from docs/protocol.md alone.
import { decode, encode, need, parse, same } from './wire.mjs'

const U = '0 18446744073709551615'
const FRAMES = parse({
  Batch: 'frames M Frame many',
  Frame: `channel u ${U};hello M Hello;allowance M Envelope;quote M Quote;request M Request;accept M Accept;due M Due;
    started M Started;chunk M Chunk;window M Window;voucher M Envelope;end M End;receipts M Envelope;cosign M Envelope;
    error M Error;cancel M Cancel;resume M Resume;close M Envelope;ping M Nonce;pong M Nonce;goaway M Goaway;ack M Ack`,
  Hello: `version u ${U};network_id net;role u ${U};clock_ns i 0 0;wallet_proof b 0;vouchers *b 0 0 16;slots u ${U};
    session_id b 0;resume_ms u ${U}`,
  Envelope: 'envelope b 0',
  Quote: `envelope b 0;slots_free u ${U};model_id s 0 256`,
  Request: `request_id b 16;quote_id b 16;allowance_id b 0;salt b 16;body b 0;choices u ${U};supersedes_request_id b 0`,
  Accept: `slots_free u ${U};queued_before u ${U}`,
  Due: `prompt_tokens u ${U};micros u ${U}`,
  Started: `prompt_tokens u ${U}`,
  Chunk: `data b 0;completion_tokens u ${U}`,
  Window: `consumed_bytes u ${U}`,
  End: 'receipt b 0',
  Error: `code u ${U};message s 0 1024;retry_after_ms u ${U};allowance_id b 0;param s 0 1024`,
  Cancel: 'unused u 0 0',
  Resume: `session_id b 16;received_bytes u ${U}`,
  Nonce: `nonce u ${U}`,
  Goaway: 'reason s 0 1024',
  Ack: `received_bytes u ${U}`
})
export const readBatch = (data) => decode('Batch', data, FRAMES).frames ?? []
export function writeBatch (frames) {
  const batch = encode('Batch', { frames }, FRAMES)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(batch.length)
  return Buffer.concat([length, batch])
}

/** Sends frames over a stream and waits for those that it expects; answers pings; outlives its stream. */
export class Session {
  #stream
  #frames = []
  #wake = () => {}
  #over = ''
  #rest = Buffer.alloc(0)
  #sent = Buffer.alloc(0) // all of it: a script is short
  #received = 0

  constructor (stream) {
    this.#listen(stream)
  }

  send (...frames) {
    const batch = writeBatch(frames)
    this.#sent = Buffer.concat([this.#sent, batch])
    this.#stream.send(batch)
  }

  #listen (stream) {
    this.#stream = stream
    this.#read(stream).catch(String).then((reason) => {
      if (this.#stream === stream) this.#over = reason
      this.#wake()
    })
  }

  async #read (stream) {
    for await (const data of stream) {
      if (this.#stream !== stream) return
      this.#feed(Buffer.from(data.subarray()))
    }
    return 'the host ended the stream'
  }

  #feed (data) {
    this.#received += data.length
    this.#rest = Buffer.concat([this.#rest, data])
    for (let batch; (batch = cutBatch(this.#rest)) !== null; this.#rest = batch.rest) this.#take(batch.frames)
  }

  #take (frames) {
    need(frames.length >= 1 && frames.length <= 8192, 'a batch of an impossible count')
    for (const frame of frames) {
      if (frame.ping) this.send({ pong: { nonce: frame.ping.nonce ?? 0n } })
      else this.#frames.push(frame)
    }
    this.#wake()
  }

  /** Loses the stream, asks on another one to go on, and repeats what the host lacks. */
  async resume (sessionId, open) {
    const lost = this.#stream
    this.#stream = undefined
    lost.abort(new Error('cut on purpose'))
    const stream = await open()
    stream.send(writeBatch([{ resume: { session_id: sessionId, received_bytes: this.#received } }]))
    const parts = stream[Symbol.asyncIterator]()
    let data = Buffer.alloc(0), first
    while ((first = cutBatch(data)) === null) {
      const { value, done } = await parts.next()
      need(!done, 'the host ended the stream')
      data = Buffer.concat([data, value.subarray()])
    }
    const [{ resume, error }] = first.frames
    need(first.frames.length === 1 && resume, `not resumed: ${error?.message}`)
    need(same(resume.session_id, sessionId), 'another session is resumed')
    const missing = this.#sent.subarray(Number(resume.received_bytes ?? 0n))
    if (missing.length > 0) stream.send(missing)
    this.#listen({ send: (batch) => stream.send(batch), abort: (why) => stream.abort(why), [Symbol.asyncIterator]: () => parts })
    this.#feed(first.rest)
  }

  /** Returns the next frame, or fails after so long. */
  async next (waitMs = 20_000) {
    const deadline = Date.now() + waitMs
    while (this.#frames.length === 0) {
      need(this.#over === '' && Date.now() < deadline, this.#over || 'the host is silent')
      await new Promise((resolve) => {
        this.#wake = resolve
        setTimeout(resolve, Math.max(1, deadline - Date.now())).unref()
      })
    }
    return this.#frames.shift()
  }

  /** Returns the next frame that has one of these bodies; others are passed over. */
  async until (...bodies) {
    for (;;) {
      const frame = await this.next()
      if (bodies.some((body) => frame[body] !== undefined)) return frame
    }
  }
}

/** Returns { frames, rest } if a whole batch has come, else null. */
function cutBatch (data) {
  if (data.length < 4) return null
  const end = 4 + data.readUInt32BE()
  need(end > 4 && end <= 4 + 4259840, 'a batch of an impossible length')
  return data.length < end ? null : { frames: readBatch(data.subarray(4, end)), rest: data.subarray(end) }
}
