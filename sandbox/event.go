package sandbox

import "time"

// EventKind is the "event" field of the audit log.
type EventKind string

// The events of the public contract that this version writes.
const (
	EventTokenIssued      EventKind = "token.issued"
	EventTokenRevoked     EventKind = "token.revoked"
	EventCertIssued       EventKind = "cert.issued"
	EventCertAccepted     EventKind = "cert.accepted"
	EventCertRefused      EventKind = "cert.refused"
	EventCertRevoked      EventKind = "cert.revoked"
	EventSandboxCreated   EventKind = "sandbox.created"
	EventSandboxPooled    EventKind = "sandbox.pooled" // being made ahead, for nobody yet
	EventSandboxStarted   EventKind = "sandbox.started"
	EventSandboxClaimed   EventKind = "sandbox.claimed" // taken from the pool
	EventSandboxDraining  EventKind = "sandbox.draining"
	EventSandboxExtended  EventKind = "sandbox.extended"
	EventSandboxDestroyed EventKind = "sandbox.destroyed"
	EventSessionOpened    EventKind = "session.opened"
	EventSessionClosed    EventKind = "session.closed"
	EventCommandStarted   EventKind = "command.started"
	EventCommandFinished  EventKind = "command.finished"
	EventFileWritten      EventKind = "file.written"
	EventForwardOpened    EventKind = "forward.opened"
	EventEgressDenied     EventKind = "egress.denied" // Source is the sandbox's address
	EventQuotaDenied      EventKind = "quota.denied"
	EventPolicyDenied     EventKind = "policy.denied"
	EventSetupChanged     EventKind = "setup.changed"
)

// Event is one entry of the audit log. Empty fields are left out of the file.
// Detail holds what has no field of its own; it never holds a secret, and the
// values that a user controls are bounded by whoever makes the event.
type Event struct {
	Seq        int64             `json:"seq"` // set by the Store: contiguous from 1
	Time       time.Time         `json:"time"`
	Event      EventKind         `json:"event"`
	Tenant     string            `json:"tenant,omitempty"`
	Subject    string            `json:"subject,omitempty"`
	Actor      ActorKind         `json:"actor,omitempty"`
	Sandbox    ID                `json:"sandbox,omitempty"`
	SpecDigest Digest            `json:"spec_digest,omitempty"`
	Token      string            `json:"token_id,omitempty"`
	Serial     uint64            `json:"cert_serial,omitempty"`
	Source     string            `json:"source,omitempty"`
	Session    string            `json:"session,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	Detail     map[string]string `json:"detail,omitempty"`
	// Prev and Hash are set by the Store, see [Event.Seal]; Hash stays the last field.
	Prev string `json:"prev,omitempty"`
	Hash string `json:"hash,omitempty"`
}
