-- Times are milliseconds since 1970 by the server's clock; leases and `updated_at` use the database's clock.
-- `position` is the order of insertion: the paging order, and stable when two rows share a millisecond.

create table fettle.api_keys (
  id text primary key,
  project_id text not null,
  name text not null,
  role text not null check (role in ('admin', 'member')),
  hint text not null,
  secret_hash text not null unique,
  created_at bigint not null,
  expires_at bigint,
  revoked_at bigint,
  last_used_at bigint
);
create index api_keys_of_project on fettle.api_keys (project_id, created_at);

create table fettle.files (
  position bigint generated always as identity unique,
  id text primary key,
  project_id text not null,
  filename text not null,
  purpose text not null,
  bytes bigint not null,
  sha256 text not null,
  status text not null check (status in ('uploaded', 'processed', 'error')),
  status_details text,
  created_at bigint not null,
  expires_at bigint,
  report json,
  deleted_at bigint
);
create index files_of_project on fettle.files (project_id, position) where deleted_at is null;
create index files_unprocessed on fettle.files (position) where status = 'uploaded' and deleted_at is null;
create index files_expiring on fettle.files (expires_at) where expires_at is not null and deleted_at is null;

create table fettle.uploads (
  id text primary key,
  project_id text not null,
  filename text not null,
  purpose text not null,
  bytes bigint not null,
  mime_type text not null,
  status text not null check (status in ('pending', 'completed', 'cancelled', 'expired')),
  created_at bigint not null,
  expires_at bigint not null,
  file_id text
);
create index uploads_pending on fettle.uploads (expires_at) where status = 'pending';

create table fettle.upload_parts (
  position bigint generated always as identity unique,
  id text primary key,
  upload_id text not null references fettle.uploads (id) on delete cascade,
  bytes bigint not null,
  created_at bigint not null
);
create index upload_parts_of_upload on fettle.upload_parts (upload_id, position);

-- `record` is the Run of domain/job.ts; what SQL asks for is derived from it and cannot drift.
create table fettle.runs (
  position bigint generated always as identity unique,
  id text primary key,
  record jsonb not null,
  project_id text not null generated always as (record ->> 'projectId') stored,
  status text not null generated always as (record ->> 'status') stored,
  training_file text not null generated always as (record ->> 'trainingFile') stored,
  validation_file text generated always as (record ->> 'validationFile') stored,
  last_seq bigint not null default 0,
  events_offset bigint not null default 0,
  lease_owner text,
  lease_token bigint not null default 0,
  lease_expires_at timestamptz,
  updated_at timestamptz not null default clock_timestamp()
);
create index runs_of_project on fettle.runs (project_id, position);
create index runs_unended on fettle.runs (status, position) where status not in ('succeeded', 'failed', 'cancelled');
create index runs_reading_file on fettle.runs (training_file) where status not in ('succeeded', 'failed', 'cancelled');
create index runs_validating_on on fettle.runs (validation_file) where status not in ('succeeded', 'failed', 'cancelled');
create index runs_updated on fettle.runs (updated_at);

-- `key` makes writing twice harmless; `seq` counts 1, 2, 3 ... within a run without a gap.
create table fettle.run_events (
  run_id text not null references fettle.runs (id) on delete cascade,
  seq bigint not null,
  id text not null unique,
  key text not null,
  created_at bigint not null,
  level text not null check (level in ('info', 'warn', 'error')),
  type text not null check (type in ('message', 'metrics')),
  message text not null,
  data json,
  primary key (run_id, seq),
  unique (run_id, key)
);

create table fettle.checkpoints (
  id text primary key,
  run_id text not null references fettle.runs (id) on delete cascade,
  step bigint not null,
  model_name text not null unique,
  path text not null,
  metrics json not null,
  created_at bigint not null,
  unique (run_id, step)
);

create table fettle.models (
  position bigint generated always as identity unique,
  name text primary key,
  project_id text not null,
  run_id text not null unique references fettle.runs (id),
  base_model text not null,
  task text not null,
  method text not null,
  artefact text not null,
  artefact_sha256 text not null,
  labels json,
  created_at bigint not null
);
create index models_of_project on fettle.models (project_id, position);

-- `status` is null while the first request is at work.
create table fettle.idempotency (
  project_id text not null,
  key text not null,
  body_hash text not null,
  created_at bigint not null,
  status integer,
  body text,
  primary key (project_id, key)
);
create index idempotency_created on fettle.idempotency (created_at);
