// js-libp2p wants Node 22; on Node 20 this is all that it lacks.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((...both) => { [resolve, reject] = both })
  return { promise, resolve, reject }
}
