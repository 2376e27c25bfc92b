package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/podspawn/podspawn/agent/api"
)

var _ api.Admin = (*Client)(nil)

// Revoke revokes certificates.
func (c *Client) Revoke(ctx context.Context, ref string) (api.Revoked, error) {
	var out api.Revoked
	return out, c.do(ctx, http.MethodPost, "/v1/ca/revoke", nil, api.RevokeRequest{Certificate: ref}, &out)
}

// Tokens lists API tokens.
func (c *Client) Tokens(ctx context.Context) (api.Tokens, error) {
	var out api.Tokens
	return out, c.do(ctx, http.MethodGet, "/v1/tokens", nil, nil, &out)
}

// RevokeToken revokes a token with all that it opened.
func (c *Client) RevokeToken(ctx context.Context, id string) (api.Revoked, error) {
	var out api.Revoked
	return out, c.do(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, nil, &out)
}

// RotateCA makes a new user CA.
func (c *Client) RotateCA(ctx context.Context, r api.RotateRequest) (api.CA, error) {
	var out api.CA
	return out, c.do(ctx, http.MethodPost, "/v1/ca/rotate", nil, r, &out)
}

// Drain turns the refusal of new sandboxes on or off.
func (c *Client) Drain(ctx context.Context, r api.DrainRequest) (api.Drain, error) {
	var out api.Drain
	return out, c.do(ctx, http.MethodPost, "/v1/drain", nil, r, &out)
}
