package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReadEventsFindsTheAnswer(t *testing.T) {
	stream := ": comment\n\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\n" +
		"data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\ndata: {\"jsonrpc\":\"2.0\",\ndata: \"id\":2,\"result\":{\"x\":1}}\n\n"
	got, err := readEvents(strings.NewReader(stream), 2)
	if err != nil {
		t.Fatal(err)
	}
	var m rpcMessage
	if err := json.Unmarshal(got, &m); err != nil || string(m.Result) != `{"x":1}` {
		t.Errorf("readEvents = %s, %v, want the answer to 2", got, err)
	}
	if _, err := readEvents(strings.NewReader(stream), 3); err == nil {
		t.Error("readEvents found an answer that is not there")
	}
}

// TestPlayStopsAtAServerThatLacksATool: the example must fail where something is
// missing, or it shows nothing.
func TestPlayStopsAtAServerThatLacksATool(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m rpcMessage
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		result := json.RawMessage(`{"tools":[{"name":"sandbox_create"}]}`)
		if err := json.NewEncoder(w).Encode(rpcMessage{JSONRPC: "2.0", ID: m.ID, Result: result}); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	t.Setenv("PODSPAWN_TOKEN", "secret")
	var out strings.Builder
	err := run(t.Context(), []string{"-url", srv.URL}, &out)
	if err == nil || !strings.Contains(err.Error(), "no tool sandbox_get") {
		t.Errorf("run = %v, want that sandbox_get is missing; it said %s", err, out.String())
	}
	t.Setenv("PODSPAWN_TOKEN", "wrong")
	if err := run(t.Context(), []string{"-url", srv.URL}, &out); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("run with a wrong token = %v, want 401", err)
	}
}
