package agent

import (
	"context"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox/localapi"
	"github.com/podspawn/podspawn/sandbox/podfile"
)

func (a *as) Validate(ctx context.Context, r api.CreateRequest) (api.Validation, error) {
	spec, err := a.s.spec(r)
	if err != nil {
		return api.Validation{}, err
	}
	in := localapi.CreateRequest{
		Name: r.Name, Labels: r.Labels, Spec: spec,
		DefaultTTL: r.TTL == 0 && spec.Lifecycle.TTL == a.s.defaultsFor(r.Maker).Lifecycle.TTL,
	}
	if in.Name == "" {
		in.Name = spec.Name
	}
	if err := checkCreate(in, r); err != nil {
		return api.Validation{}, err
	}
	var out localapi.ValidateResponse
	if err := a.call(ctx, localapi.OpValidate, in, &out); err != nil {
		return api.Validation{}, err
	}
	spec.Lifecycle.TTL = out.TTL
	v := api.Validation{
		Podfile: string(podfile.Marshal(spec)), SpecDigest: out.Digest, Denied: []api.Denial{},
		Caps: api.Caps{MaxSandboxes: out.MaxSandboxes, SandboxesLeft: -1, MaxTTL: api.Duration(out.MaxTTL)},
	}
	if out.MaxSandboxes > 0 {
		v.Caps.SandboxesLeft = max(0, out.MaxSandboxes-out.Living)
	}
	for _, d := range out.Denied {
		v.Denied = append(v.Denied, api.Denial{Code: d.Kind, Message: d.Msg, Hint: d.Hint})
	}
	return v, nil
}
