-- A store as mqi-hpc 0.1.0 wrote it (schema version 1). Never changed: migration starts from it.
BEGIN TRANSACTION;
CREATE TABLE cases (
  case_id TEXT PRIMARY KEY, site TEXT NOT NULL, instance TEXT NOT NULL, label TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL, folder TEXT NOT NULL, created_at REAL NOT NULL, body TEXT NOT NULL) STRICT;
INSERT INTO "cases" VALUES('aaaaaaaaaaaa','site','i1','P-aaaaaaaaaaaa','completed','/cases/aaaaaaaaaaaa',1800000000.0,'{"case_id":"aaaaaaaaaaaa","status":"completed","beam_count":2,"created_at":"2027-01-15T08:00:00Z","updated_at":"2027-01-15T08:00:00Z","metadata":{"note":"Grüße, O''Brien"},"site":"site","instance":"i1","identity":"identity of aaaaaaaaaaaa","label":"P-aaaaaaaaaaaa","folder":"/cases/aaaaaaaaaaaa","plan_uid":"1.2.3","machine":"G2","beams":[{"index":0,"number":2,"name":"G0","energies":[100.0,90.0],"input_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","seed":1000},{"index":1,"number":3,"name":"G1","energies":[100.0,90.0],"input_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","seed":1001}],"files":[{"remote":"plan.dcm","local":"RP.dcm","bytes":3,"sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}],"attention":null}');
INSERT INTO "cases" VALUES('bbbbbbbbbbbb','site','i1','P-bbbbbbbbbbbb','processing','/cases/bbbbbbbbbbbb',1800000000.0,'{"case_id":"bbbbbbbbbbbb","status":"processing","beam_count":2,"created_at":"2027-01-15T08:00:00Z","updated_at":"2027-01-15T08:00:00Z","metadata":{"note":"Grüße, O''Brien"},"site":"site","instance":"i1","identity":"identity of bbbbbbbbbbbb","label":"P-bbbbbbbbbbbb","folder":"/cases/bbbbbbbbbbbb","plan_uid":"1.2.3","machine":"G2","beams":[{"index":0,"number":2,"name":"G0","energies":[100.0,90.0],"input_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","seed":1000},{"index":1,"number":3,"name":"G1","energies":[100.0,90.0],"input_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","seed":1001}],"files":[{"remote":"plan.dcm","local":"RP.dcm","bytes":3,"sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}],"attention":null}');
INSERT INTO "cases" VALUES('cccccccccccc','site','i1','P-cccccccccccc','new','/cases/cccccccccccc',1800000000.0,'{"case_id":"cccccccccccc","status":"new","beam_count":1,"created_at":"2027-01-15T08:00:00Z","updated_at":"2027-01-15T08:00:00Z","metadata":{},"site":"site","instance":"i1","identity":"identity of cccccccccccc","label":"P-cccccccccccc","folder":"/cases/cccccccccccc","plan_uid":"1.2.3","machine":"G2","beams":[{"index":0,"number":2,"name":"G0","energies":[100.0,90.0],"input_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","seed":1000}],"files":[{"remote":"plan.dcm","local":"RP.dcm","bytes":3,"sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}],"attention":null}');
CREATE TABLE events (
  number INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, case_id TEXT, data TEXT NOT NULL,
  digest TEXT NOT NULL UNIQUE) STRICT;
INSERT INTO "events" VALUES(1,1800000001.25,'registered','aaaaaaaaaaaa','{"beams":2}','80ca614266d78f3b4ef56ebf514cd9440d389de7669028f2bd0c535c736cf71b');
INSERT INTO "events" VALUES(2,1800000002.5,'registered','bbbbbbbbbbbb','{"beams":2}','1c1fea39564b15895e07beb5370288f18cb4fa110d50cd3ea01410faa416135f');
INSERT INTO "events" VALUES(3,1800000003.75,'job','aaaaaaaaaaaa','{"energies":[0.1,1e+16],"job":"aaaaaaaaaaaa-j01"}','854397fb8c5f41489927eb3926dc99b9614e7ce0351863f96409d927e28a028e');
INSERT INTO "events" VALUES(4,1800000005.0,'job','bbbbbbbbbbbb','{"energies":[0.1,1e+16],"job":"bbbbbbbbbbbb-j01"}','b293627de4b66683acf2e2631e3884cf8e526ef44abae4027e0a853a35bf68ce');
INSERT INTO "events" VALUES(5,1800000006.25,'job','bbbbbbbbbbbb','{"energies":[0.1,1e+16],"job":"bbbbbbbbbbbb-j02"}','12628727ebd11104092ae761c216f19e6a9bc4066a86088433cbe83cd378f73d');
INSERT INTO "events" VALUES(6,1800000007.5,'started',NULL,'{}','6aa1674087b72265de85b6b4f0aeeccfc220198de7079e8d04cee7cb292f3b47');
CREATE TABLE files (
  job_id TEXT NOT NULL REFERENCES jobs, path TEXT NOT NULL, content BLOB NOT NULL,
  PRIMARY KEY (job_id, path)) STRICT;
INSERT INTO "files" VALUES('aaaaaaaaaaaa-j01','chain.json',X'7B2276657273696F6E223A20317D0A');
INSERT INTO "files" VALUES('aaaaaaaaaaaa-j01','stages.pyz',X'504B030400FF');
INSERT INTO "files" VALUES('bbbbbbbbbbbb-j01','chain.json',X'7B2276657273696F6E223A20317D0A');
INSERT INTO "files" VALUES('bbbbbbbbbbbb-j01','stages.pyz',X'504B030400FF');
INSERT INTO "files" VALUES('bbbbbbbbbbbb-j02','chain.json',X'7B2276657273696F6E223A20317D0A');
INSERT INTO "files" VALUES('bbbbbbbbbbbb-j02','stages.pyz',X'504B030400FF');
CREATE TABLE holdings (job_id TEXT PRIMARY KEY, slots INTEGER NOT NULL) STRICT;
INSERT INTO "holdings" VALUES('bbbbbbbbbbbb-j02',2);
CREATE TABLE jobs (
  job_id TEXT PRIMARY KEY, case_id TEXT NOT NULL REFERENCES cases, number INTEGER NOT NULL,
  name TEXT NOT NULL, status TEXT NOT NULL, submit_state TEXT NOT NULL, body TEXT NOT NULL,
  UNIQUE (case_id, number)) STRICT;
INSERT INTO "jobs" VALUES('aaaaaaaaaaaa-j01','aaaaaaaaaaaa',1,'j01','running','standing','{"job_id":"aaaaaaaaaaaa-j01","case_id":"aaaaaaaaaaaa","status":"running","gpu_allocation":[],"priority":0,"created_at":"2026-11-01T12:00:00.123456Z","started_at":null,"completed_at":null,"name":"j01","submit_state":"standing","submissions":[{"stage":"interpret","name":"mqi-i1-aaaaaaaaaaaa-j01-interpret","indices":[],"slurm_id":100,"cluster_time":1.5},{"stage":"beams","name":"mqi-i1-aaaaaaaaaaaa-j01-beams","indices":[0,1],"slurm_id":101,"cluster_time":1.5},{"stage":"convert","name":"mqi-i1-aaaaaaaaaaaa-j01-convert","indices":[],"slurm_id":102,"cluster_time":1.5}],"refusal":null,"cancelled":[]}');
INSERT INTO "jobs" VALUES('bbbbbbbbbbbb-j01','bbbbbbbbbbbb',1,'j01','running','standing','{"job_id":"bbbbbbbbbbbb-j01","case_id":"bbbbbbbbbbbb","status":"running","gpu_allocation":[],"priority":0,"created_at":"2026-11-01T12:00:00.123456Z","started_at":null,"completed_at":null,"name":"j01","submit_state":"standing","submissions":[{"stage":"interpret","name":"mqi-i1-bbbbbbbbbbbb-j01-interpret","indices":[],"slurm_id":100,"cluster_time":1.5},{"stage":"beams","name":"mqi-i1-bbbbbbbbbbbb-j01-beams","indices":[0,1],"slurm_id":101,"cluster_time":1.5},{"stage":"convert","name":"mqi-i1-bbbbbbbbbbbb-j01-convert","indices":[],"slurm_id":102,"cluster_time":1.5}],"refusal":null,"cancelled":[]}');
INSERT INTO "jobs" VALUES('bbbbbbbbbbbb-j02','bbbbbbbbbbbb',2,'j02','running','standing','{"job_id":"bbbbbbbbbbbb-j02","case_id":"bbbbbbbbbbbb","status":"running","gpu_allocation":[],"priority":0,"created_at":"2026-11-01T12:00:00.123456Z","started_at":null,"completed_at":null,"name":"j02","submit_state":"standing","submissions":[{"stage":"interpret","name":"mqi-i1-bbbbbbbbbbbb-j02-interpret","indices":[],"slurm_id":100,"cluster_time":1.5},{"stage":"beams","name":"mqi-i1-bbbbbbbbbbbb-j02-beams","indices":[0,1],"slurm_id":101,"cluster_time":1.5},{"stage":"convert","name":"mqi-i1-bbbbbbbbbbbb-j02-convert","indices":[],"slurm_id":102,"cluster_time":1.5}],"refusal":null,"cancelled":[]}');
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
INSERT INTO "meta" VALUES('instance','i1');
INSERT INTO "meta" VALUES('head','6aa1674087b72265de85b6b4f0aeeccfc220198de7079e8d04cee7cb292f3b47');
CREATE TABLE tasks (
  task_id TEXT PRIMARY KEY, job_id TEXT NOT NULL REFERENCES jobs, kind INTEGER NOT NULL,
  number INTEGER NOT NULL, status TEXT NOT NULL, body TEXT NOT NULL) STRICT;
INSERT INTO "tasks" VALUES('aaaaaaaaaaaa-j01/beam_calc-1','aaaaaaaaaaaa-j01',2,1,'completed','{"task_id":"aaaaaaaaaaaa-j01/beam_calc-1","job_id":"aaaaaaaaaaaa-j01","type":"beam_calc","parameters":{"results":["beam_2.dcm"]},"status":"completed","index":1,"phase":"","detail":"","row":"","waited":2.5,"polls":0,"slurm":"","slurm_exit":"","node":"","exit_code":null,"noted":"","record":"{\"stage\": \"beams\"}\n"}');
INSERT INTO "tasks" VALUES('aaaaaaaaaaaa-j01/upload','aaaaaaaaaaaa-j01',0,0,'pending','{"task_id":"aaaaaaaaaaaa-j01/upload","job_id":"aaaaaaaaaaaa-j01","type":"upload","parameters":{},"status":"pending","index":0,"phase":"","detail":"","row":"","waited":0.0,"polls":0,"slurm":"","slurm_exit":"","node":"","exit_code":null,"noted":"","record":null}');
INSERT INTO "tasks" VALUES('bbbbbbbbbbbb-j01/beam_calc-1','bbbbbbbbbbbb-j01',2,1,'completed','{"task_id":"bbbbbbbbbbbb-j01/beam_calc-1","job_id":"bbbbbbbbbbbb-j01","type":"beam_calc","parameters":{"results":["beam_2.dcm"]},"status":"completed","index":1,"phase":"","detail":"","row":"","waited":2.5,"polls":0,"slurm":"","slurm_exit":"","node":"","exit_code":null,"noted":"","record":"{\"stage\": \"beams\"}\n"}');
INSERT INTO "tasks" VALUES('bbbbbbbbbbbb-j01/upload','bbbbbbbbbbbb-j01',0,0,'pending','{"task_id":"bbbbbbbbbbbb-j01/upload","job_id":"bbbbbbbbbbbb-j01","type":"upload","parameters":{},"status":"pending","index":0,"phase":"","detail":"","row":"","waited":0.0,"polls":0,"slurm":"","slurm_exit":"","node":"","exit_code":null,"noted":"","record":null}');
INSERT INTO "tasks" VALUES('bbbbbbbbbbbb-j02/beam_calc-1','bbbbbbbbbbbb-j02',2,1,'completed','{"task_id":"bbbbbbbbbbbb-j02/beam_calc-1","job_id":"bbbbbbbbbbbb-j02","type":"beam_calc","parameters":{"results":["beam_2.dcm"]},"status":"completed","index":1,"phase":"","detail":"","row":"","waited":2.5,"polls":0,"slurm":"","slurm_exit":"","node":"","exit_code":null,"noted":"","record":"{\"stage\": \"beams\"}\n"}');
INSERT INTO "tasks" VALUES('bbbbbbbbbbbb-j02/upload','bbbbbbbbbbbb-j02',0,0,'pending','{"task_id":"bbbbbbbbbbbb-j02/upload","job_id":"bbbbbbbbbbbb-j02","type":"upload","parameters":{},"status":"pending","index":0,"phase":"","detail":"","row":"","waited":0.0,"polls":0,"slurm":"","slurm_exit":"","node":"","exit_code":null,"noted":"","record":null}');
CREATE UNIQUE INDEX tasks_of_job ON tasks (job_id, kind, number);
CREATE INDEX events_of_case ON events (case_id, number);
CREATE TRIGGER events_stay BEFORE UPDATE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
PRAGMA user_version=1;
COMMIT;
