-- Certificates are looked up by what revokes them, and the revoked ones every
-- time the revocation list is written.

CREATE INDEX certificates_sandbox ON certificates (sandbox, serial);
CREATE INDEX certificates_token   ON certificates (token, serial) WHERE token <> '';
CREATE INDEX certificates_key_id  ON certificates (key_id, serial);
CREATE INDEX certificates_revoked ON certificates (valid_before) WHERE revoked_at <> 0;
