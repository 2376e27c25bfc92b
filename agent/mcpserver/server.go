package mcpserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// answerWithin is how long a tool may take: clients give up after 30 s at the
// earliest.
const answerWithin = 25 * time.Second

// Config is what New needs.
type Config struct {
	// API returns the API of the caller that ctx belongs to. It is called for each
	// tool call, never before, so that a bridge answers initialize without its server.
	API     func(ctx context.Context) (api.API, error)
	Version string
	Bridge  *Bridge // nil on the service
	// NoNetwork says that no sandbox of this service ever has a network.
	NoNetwork bool
	Log       *slog.Logger // nil discards
}

// Server serves the tools. It is safe for concurrent use.
type Server struct {
	api    func(ctx context.Context) (api.API, error)
	bridge *Bridge
	log    *slog.Logger
	mcp    *server.MCPServer
}

// New returns a Server.
func New(cfg Config) (*Server, error) {
	if cfg.API == nil {
		return nil, errors.New("mcpserver: no API")
	}
	s := &Server{api: cfg.API, bridge: cfg.Bridge, log: cfg.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.mcp = server.NewMCPServer("podspawn", cfg.Version,
		server.WithTitle("podspawn sandboxes"),
		server.WithInstructions(instructions(s.bridge != nil)),
		server.WithToolCapabilities(false),
		server.WithLogger(s.log),
	)
	for _, t := range tools(s.bridge != nil) {
		t.world = t.world && !cfg.NoNetwork
		s.mcp.AddTool(t.definition(), s.handler(t))
	}
	return s, nil
}

// Handler returns the Streamable HTTP endpoint. It checks no credential, Host or
// Origin: it belongs behind httpapi's gate.
func (s *Server) Handler() http.Handler {
	return server.NewStreamableHTTPServer(s.mcp,
		server.WithStateLess(true),
		server.WithDisableStreaming(true), // nothing is ever sent unasked
		server.WithDisableLocalhostProtection(true),
		server.WithStreamableHTTPLogger(s.log),
	)
}

// handler runs one tool: strict arguments in, structured result out, every
// failure a result that the model can read.
func (s *Server) handler(t tool) server.ToolHandlerFunc {
	return func(ctx context.Context, req mcp.CallToolRequest) (res *mcp.CallToolResult, err error) {
		defer func() {
			if p := recover(); p != nil {
				s.log.ErrorContext(ctx, "panic", "tool", t.name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				res, err = failure(errors.New("panic")), nil
			}
		}()
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		out, err := s.run(ctx, t, req)
		if err != nil {
			if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = tooLate(err)
			}
			if sandbox.KindOf(err) == sandbox.KindInternal {
				s.log.ErrorContext(ctx, "tool failed", "tool", t.name, "error", err)
			}
			return failure(err), nil
		}
		return success(out)
	}
}

func (s *Server) run(ctx context.Context, t tool, req mcp.CallToolRequest) (any, error) {
	args, err := arguments(req)
	if err != nil {
		return nil, err
	}
	a, err := s.api(ctx)
	if err != nil {
		return nil, err
	}
	return t.call(ctx, s, a, args)
}

// arguments returns a call's arguments as JSON for api.Decode. None, which some
// clients write as null, are an empty object.
func arguments(req mcp.CallToolRequest) ([]byte, error) {
	b, err := json.Marshal(req.GetRawArguments())
	if err != nil {
		return nil, fmt.Errorf("encode arguments: %w", err)
	}
	if string(b) == "null" {
		return []byte("{}"), nil
	}
	return b, nil
}

// tooLate is a call that the daemon did not answer in a tool's time. It keeps a
// kind that the daemon gave.
func tooLate(err error) error {
	if k := sandbox.KindOf(err); k != sandbox.KindInternal && k != sandbox.KindUnavailable {
		return err
	}
	return &sandbox.Error{
		Kind: sandbox.KindTimeout, Err: err,
		Msg:  fmt.Sprintf("no result within %s; what was asked for may still happen", answerWithin),
		Hint: "look with sandbox_list before you ask again, or repeat with the same idempotency_key",
	}
}

func success(v any) (*mcp.CallToolResult, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return &mcp.CallToolResult{
		Content:           []mcp.Content{mcp.NewTextContent(string(b))},
		StructuredContent: json.RawMessage(b),
	}, nil
}

// problem is a failed call as the model sees it.
type problem struct {
	Code       sandbox.Kind `json:"code"`
	Message    string       `json:"message"`
	Hint       string       `json:"hint"`
	RetryAfter int          `json:"retry_after"` // seconds; 0: the same call will not succeed by itself
}

func failure(err error) *mcp.CallToolResult {
	e := sandbox.Public(err)
	b, merr := json.Marshal(problem{e.Kind, e.Msg, e.Hint, retryAfter(e.Kind)})
	if merr != nil { // strings and a number always marshal
		panic("mcpserver: problem does not marshal: " + merr.Error())
	}
	return &mcp.CallToolResult{
		Content:           []mcp.Content{mcp.NewTextContent(string(b))},
		StructuredContent: json.RawMessage(b),
		IsError:           true,
	}
}

// retryAfter is the one place where kinds become numbers here.
func retryAfter(k sandbox.Kind) int {
	switch k {
	case sandbox.KindNotReady:
		return 1
	case sandbox.KindUnavailable, sandbox.KindTimeout:
		return 5
	case sandbox.KindCapacity, sandbox.KindQuota:
		return 30
	case sandbox.KindInvalidSpec, sandbox.KindUnknownField, sandbox.KindUnauthorized, sandbox.KindInsufficientScope,
		sandbox.KindNotFound, sandbox.KindGone, sandbox.KindConflict, sandbox.KindPolicy, sandbox.KindImageNotFound,
		sandbox.KindEgressDenied, sandbox.KindIdempotencyMismatch, sandbox.KindInternal:
		return 0
	}
	return 0
}

// ScopeOf returns the scope that a JSON-RPC message needs, or "": for the gate's
// 403. The daemon decides again.
func ScopeOf(message []byte) sandbox.Scope {
	var m struct {
		Method string `json:"method"`
		Params struct {
			Name string `json:"name"`
		} `json:"params"`
	}
	if json.Unmarshal(message, &m) != nil || m.Method != string(mcp.MethodToolsCall) {
		return ""
	}
	for _, t := range tools(false) {
		if t.name == m.Params.Name {
			return t.scope
		}
	}
	return ""
}
