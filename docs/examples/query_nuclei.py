"""Query the tables that jobs/segment.py wrote.

python docs/examples/query_nuclei.py OUTPUT
"""

import sys

import duckdb

images = duckdb.read_parquet(f"{sys.argv[1]}/images/*/*.parquet")
nuclei = duckdb.read_parquet(f"{sys.argv[1]}/instances/*/*.parquet")
counts = duckdb.sql("""
    select status, count(*) as images, sum(num_nuclei) as nuclei from images group by status
""")
large = duckdb.sql("""
    select coalesce(member, image_uri) as image,
        count(*) as large_nuclei, round(avg(area_px)) as mean_area_px
    from nuclei join images using (image_id)
    where area_px > (select 1.5 * median(area_px) from nuclei)
    group by image order by large_nuclei desc limit 5
""")
print(counts, large, sep="\n")
