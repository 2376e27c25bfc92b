// Package sandbox is the domain: what a sandbox is, which spec describes it,
// which states it goes through, and who does what to it. It owns the
// vocabulary that every other package speaks ([ID], [Spec], [State], [Error])
// and the rules of a lifetime, which [Manager] carries out.
//
// It imports nothing of ours and knows no technology. Docker, SQLite, network
// namespaces and the login database are reached through the small interfaces
// declared here ([Runtime], [Store], [Host]), each with a contract in its
// comment and, where there can be several implementations, a test suite
// (runtimetest, storetest).
package sandbox
