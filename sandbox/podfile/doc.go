// Package podfile reads and writes the Podfile, the YAML form of a sandbox.Spec.
// It owns the file's keys, their spellings of sizes and durations, and where the
// file is looked for. A key that it does not know is an error, with the line and
// the nearest key that it knows.
//
// It reads foreign text: size, depth and node count are bounded, and anchors,
// aliases, merge keys, tags and further documents are refused. What a value may
// be is sandbox.Spec.Validate's to say, and what a host grants is policy's.
package podfile
