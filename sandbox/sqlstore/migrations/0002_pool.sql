-- The key under which a sandbox that nobody owns waits; '' for all others.
ALTER TABLE sandboxes ADD COLUMN pool TEXT NOT NULL DEFAULT '';

CREATE INDEX sandboxes_pool ON sandboxes (n) WHERE pool <> '' AND final = 0;
