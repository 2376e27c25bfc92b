package mcpserver

import (
	"context"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

type validateArgs struct {
	Image   string       `json:"image"`
	Podfile string       `json:"podfile"`
	TTL     api.Duration `json:"ttl"`
	Egress  string       `json:"egress"`
}

type validateResult struct {
	api.Validation
	ExpiresAt *time.Time `json:"expires_at"` // nothing is made, so nothing ends
	Next      string     `json:"next"`
}

func validateTool() tool {
	return tool{
		name: "spec_validate", title: "Check a spec", scope: sandbox.ScopeRead, readOnly: true, idempotent: true,
		description: "Check a podfile without making anything: the resolved spec with every value spelled out, its digest, and what the policy or the quota would refuse now. " +
			"Without arguments: the defaults, the caps of your token, and how many sandboxes you may still make.",
		args: object{
			"image": prop("string", "Instead of a podfile."), "podfile": prop("string", "Text of a podfile.yaml."), "ttl": duration("As in sandbox_create."),
			"egress": createTool(false).args["egress"],
		},
		result: object{
			"podfile": prop("string", "The resolved spec."), "spec_digest": prop("string", "Its digest."),
			"denied":     object{"type": "array", "items": object{"type": "object"}, "description": "code, message and hint of each refusal; empty when it would be made."},
			"caps":       prop("object", "max_sandboxes, sandboxes_left, max_ttl; 0 is no limit."),
			"expires_at": object{"type": "null", "description": "Nothing is made."}, "next": prop("string", "What to do now."),
		},
		resultRequired: []string{"podfile", "spec_digest", "denied", "caps", "next"},
		call: func(ctx context.Context, _ *Server, a api.API, raw []byte) (any, error) {
			var args validateArgs
			if err := api.Decode(raw, &args); err != nil {
				return nil, err
			}
			v, err := a.Validate(ctx, api.CreateRequest{Image: args.Image, Podfile: args.Podfile, TTL: args.TTL, Egress: args.Egress, Maker: api.MakerMCP})
			if err != nil {
				return nil, err
			}
			res := validateResult{Validation: v, Next: "Make it with sandbox_create and the same arguments."}
			if len(v.Denied) > 0 {
				res.Next = "It would be refused: see denied, each with a hint."
			}
			return res, nil
		},
	}
}
