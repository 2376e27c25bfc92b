package agent

import (
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// view is a sandbox as its tenant sees it: nothing of the host (uid, container,
// inode numbers) and no environment, which may hold secrets.
func view(r localapi.SandboxResponse) api.Sandbox {
	s := r.Sandbox
	v := api.Sandbox{
		ID: s.ID, Login: s.ID.Login(), Name: s.Name, Labels: s.Labels,
		State: s.State, Reason: s.Reason, Image: s.Spec.Image,
		CreatedAt: s.CreatedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC(), SpecDigest: s.Digest,
		Limits: api.Limits{
			CPUs: s.Spec.Resources.CPUs, Memory: s.Spec.Resources.Memory,
			Disk: s.Spec.Resources.Disk, PIDs: s.Spec.Resources.PIDs,
		},
		Lifecycle: api.Lifecycle{
			IdleTimeout: api.Duration(s.Spec.Lifecycle.IdleTimeout),
			OnExit:      s.Spec.Lifecycle.OnExit,
			Grace:       api.Duration(s.Spec.Lifecycle.Grace),
		},
		Egress:      s.Spec.Network.Egress,
		Connections: r.Connections,
		Note:        r.Note,
	}
	if !s.EndedAt.IsZero() {
		at := s.EndedAt.UTC()
		v.EndedAt = &at
	}
	for _, f := range r.Refusals {
		v.LastRefusals = append(v.LastRefusals, api.Refusal{Time: f.Time.UTC(), Serial: f.Serial, Source: f.Source, Reason: f.Reason})
	}
	return v
}
