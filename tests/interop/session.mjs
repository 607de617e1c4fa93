// The session's frames, and one gateway's end of it. Written from docs/protocol.md alone.
import { decode, encode, need, parse } from './wire.mjs'

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

/** Sends frames over a stream and waits for those that it expects; answers pings. */
export class Session {
  #stream
  #frames = []
  #wake = () => {}
  #over = ''

  constructor (stream) {
    this.#stream = stream
    this.#read().catch((error) => { this.#over = String(error) }).finally(() => this.#wake())
  }

  send (...frames) {
    this.#stream.send(writeBatch(frames))
  }

  async #read () {
    let rest = Buffer.alloc(0)
    for await (const data of this.#stream) {
      rest = Buffer.concat([rest, data.subarray()])
      while (rest.length >= 4 && rest.length >= 4 + rest.readUInt32BE()) {
        const end = 4 + rest.readUInt32BE()
        need(end > 4 && end <= 4 + 4259840, 'a batch of an impossible length')
        this.#take(readBatch(rest.subarray(4, end)))
        rest = rest.subarray(end)
      }
    }
    this.#over = 'the host ended the stream'
  }

  #take (frames) {
    need(frames.length >= 1 && frames.length <= 8192, 'a batch of an impossible count')
    for (const frame of frames) {
      if (frame.ping) this.send({ pong: { nonce: frame.ping.nonce ?? 0n } })
      else this.#frames.push(frame)
    }
    this.#wake()
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
