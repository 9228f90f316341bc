-- Keep today's counts of each crash group; run it after each load, or once a day.
-- A second run on the same day (UTC) replaces the first.
create schema if not exists bugspulse_history;

create table if not exists bugspulse_history.crashes (
    day date,
    project varchar,
    id varchar,
    message varchar,
    status varchar,
    platform varchar,
    app_version varchar,
    occurrence_count bigint,
    affected_devices bigint
);

begin;

delete from bugspulse_history.crashes
where day = (select day from bugspulse_views.today);

insert into bugspulse_history.crashes
select
    today.day,
    crashes.project,
    crashes.id,
    crashes.message,
    crashes.status,
    crashes.platform,
    crashes.app_version,
    crashes.occurrence_count,
    crashes.affected_devices
from bugspulse_views.crashes
cross join bugspulse_views.today;

commit;
