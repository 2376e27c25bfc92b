package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Spec describes a sandbox, independent of the host: what a Podfile says once
// it is parsed, completed with defaults and checked. It is frozen when the
// sandbox is made: [Spec.Digest] is bound into every certificate.
type Spec struct {
	Name      string            `json:"name,omitempty"`
	Image     string            `json:"image"`
	Env       map[string]string `json:"env,omitempty"`
	User      string            `json:"user,omitempty"`  // name or uid inside; "" is the image's user
	Shell     string            `json:"shell,omitempty"` // "" is the user's shell in the image, else /bin/sh
	Workspace string            `json:"workspace"`       // absolute, clean; made for the user when missing
	Resources Resources         `json:"resources"`
	Network   Network           `json:"network"`
	SSH       SSHRights         `json:"ssh"`
	Lifecycle Lifecycle         `json:"lifecycle"`
}

// Resources are hard limits of one sandbox.
type Resources struct {
	CPUs   float64 `json:"cpus"`   // in cores
	Memory int64   `json:"memory"` // in bytes
	Disk   int64   `json:"disk"`   // in bytes, of everything written outside mounts
	PIDs   int64   `json:"pids"`   // processes and threads
}

// Network says what the sandbox may reach.
type Network struct {
	Egress Egress `json:"egress"`
}

// SSHRights says which SSH features a certificate for this sandbox may grant.
type SSHRights struct {
	Forwarding bool `json:"forwarding"`
	Agent      bool `json:"agent"`
	X11        bool `json:"x11"`
	SFTP       bool `json:"sftp"`
}

// OnExit says what happens after the last SSH session has ended.
type OnExit string

const (
	// OnExitDestroy destroys the sandbox once Lifecycle.Grace has passed.
	OnExitDestroy OnExit = "destroy"
	// OnExitKeep leaves it to Lifecycle.IdleTimeout and Lifecycle.TTL.
	OnExitKeep OnExit = "keep"
)

// Lifecycle says when a sandbox ends. JSON carries nanoseconds, since the
// digest is taken over it and no other unit is exact.
type Lifecycle struct {
	TTL         time.Duration `json:"ttl"`
	IdleTimeout time.Duration `json:"idle_timeout"`
	OnExit      OnExit        `json:"on_exit"`
	Grace       time.Duration `json:"grace"`
}

// Digest identifies a spec: "sha256:" and 64 hexadecimal digits.
type Digest string

// Digest returns the digest of the spec's JSON, whose map keys encoding/json
// sorts: equal specs have equal digests.
func (s Spec) Digest() Digest {
	b, err := json.Marshal(s)
	if err != nil { // NaN in CPUs; Validate refuses it first
		panic("sandbox: spec does not marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}
