// Package storetest is the contract of sandbox.Store as tests: every
// implementation passes [Run].
//
// It knows nothing of how a state is kept; what is special to one (its file, its
// crashes, its disk) is that implementation's own to test.
package storetest
