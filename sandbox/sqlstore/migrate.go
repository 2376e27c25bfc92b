package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// migrations holds one file a schema version, in order: NNNN_what.sql. A file
// that was released is never changed; the next version gets the next file.
//
//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks the file as ours: "pods".
const applicationID = 0x706f6473

// checkFile reads the whole file and reports damage, a file of another program,
// and one of a newer version. It changes nothing.
func checkFile(ctx context.Context, db *sql.DB) error {
	rows, err := db.QueryContext(ctx, "PRAGMA quick_check(1)")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var found string
		if err := rows.Scan(&found); err != nil {
			return err
		}
		if found != "ok" {
			return fmt.Errorf("%w: %s", errDamaged, found)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	var app, version, tables int
	if err := db.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id),
		(SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)`).Scan(&app, &version, &tables); err != nil {
		return err
	}
	if app == 0 && version == 0 && tables == 0 {
		return nil // new
	}
	if app != applicationID {
		return sandbox.Errorf(sandbox.KindUnavailable, "set another state file, or move this one away",
			"the state file belongs to another program")
	}
	return checkVersion(version)
}

func checkVersion(version int) error {
	if newest, err := newestVersion(); err != nil || version > newest {
		return sandbox.Errorf(sandbox.KindUnavailable, "install the newer podspawn again; an older one must not write to this file",
			"the state file was written by a newer version (schema %d, this one knows %d)", version, newest)
	}
	return nil
}

func newestVersion() (int, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	return len(names), err
}

// migrate applies what is missing, each version in a transaction of its own, so
// that a crash leaves the version before it. Two processes at once do it in turn.
func migrate(ctx context.Context, db *sql.DB) error {
	names, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return err
	}
	for i, name := range names {
		if !strings.HasPrefix(name, fmt.Sprintf("migrations/%04d_", i+1)) {
			return fmt.Errorf("migration %s is not number %d", name, i+1)
		}
		script, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		if err := apply(ctx, db, i+1, string(script)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func apply(ctx context.Context, db *sql.DB, version int, script string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	var have int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	if have >= version {
		return checkVersion(have) // another process may have been newer
	}
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d", version, applicationID)); err != nil {
		return err
	}
	return tx.Commit()
}
