// Package sqlstore keeps the state in one SQLite file. It owns the file, its
// schema and its migrations, and everything that has to be atomic: quotas, uids,
// serials, claims, and the audit events that commit with each change.
//
// It decides nothing else: what may change, when and why is the domain's. The
// file is opened by root's processes only; two on one file are safe.
package sqlstore
