// Package audit writes the audit log, a file of JSON lines, from the events in
// the state, and checks such a file. The state is the truth: the file is
// appended from it in order, and whatever a crash left half done is mended from
// there, without a gap and without a line twice.
//
// The form of a line and its hash are sandbox.Event's. This package does not
// decide what is recorded.
package audit
