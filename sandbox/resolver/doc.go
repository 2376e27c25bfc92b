// Package resolver answers the questions for names of sandboxes that have a
// network: it forwards them to the host's own name servers, one question at a
// time, and answers nobody else. What it reads comes from sandboxes and from the
// internet, so it runs in a process of its own, as a user of its own, and never as root.
//
// It is the smallest forwarder that does: no cache, no zones. A question is read,
// checked and written anew, so that a sandbox's bytes never reach a name server.
// Answers that hold an address which is not public are emptied, and reverse names
// of such addresses are not looked up: a name is no way to learn about the host's
// own network (the firewall stops the connection in any case).
//
// Everything is bounded: sizes, questions and connections at once and per
// sandbox, and the time that each may take.
package resolver
