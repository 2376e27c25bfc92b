// Package runtimetest is the contract of sandbox.Runtime as tests: what the
// comments of the interface promise, and what every sandbox must hold against its
// own root. Each implementation runs it with [Run].
//
// It needs a guest that stays alive when started as "GUEST init" and ends on TERM;
// it doesn't speak to it.
package runtimetest
