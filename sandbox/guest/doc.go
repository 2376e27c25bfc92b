// Package guest is the protocol between the host and podspawn-guest, the first
// process of every sandbox, and its host-side client. The server is package
// pid1; the directory that the socket lives in is package sockets.
//
// One connection carries one request:
//
//  1. The daemon connects and writes a [Preamble]: who the connection is for and
//     what it may do. The guest answers with exactly [AnswerSize] bytes, the only
//     bytes of a guest that the daemon ever reads.
//  2. The daemon hands the connected descriptor to a hook or to the API process
//     (SCM_RIGHTS), which writes one [Exec] request in a [FrameRequest].
//  3. Frames go both ways until [FrameExit]. When the host's end closes, the guest
//     kills the process group.
//
// A frame is one byte of type, four bytes of length (big endian) and the
// payload, at most [MaxPayload] bytes. The host may have at most [StdinWindow]
// bytes of stdin unacknowledged (the guest returns credit with [FrameCredit]),
// so that a signal or a resize never waits behind stdin that nobody reads.
//
// Everything that comes from a guest is hostile: lengths are bounded before
// anything is allocated, and control buffers are never offered to the kernel.
package guest
