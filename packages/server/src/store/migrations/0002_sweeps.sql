-- `record` is the Sweep of domain/sweep.ts with the plans of its trials; their runs are in fettle.runs.
create table fettle.sweeps (
  position bigint generated always as identity unique,
  id text primary key,
  record jsonb not null,
  project_id text not null generated always as (record ->> 'projectId') stored,
  status text not null generated always as (record ->> 'status') stored
);
create index sweeps_of_project on fettle.sweeps (project_id, position);
create index sweeps_unended on fettle.sweeps (position) where status in ('running', 'cancelling');
